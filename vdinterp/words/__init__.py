"""How findings are written: numbers in sentences, light markup, and the meaning of special words."""
