"""Bad input named before any compute: counts and seeds, settings from files, functions of the user's."""
