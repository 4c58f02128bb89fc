"""What is written where: the residual stream, taken apart and read out early."""
