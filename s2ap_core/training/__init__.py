"""Training: Algorithm 1 and 2 of the paper, the loop around them, and the evaluation."""
