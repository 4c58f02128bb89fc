"""What heads look at: statistics of attention, one number or one picture a head."""
