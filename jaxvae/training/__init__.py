"""Training: one pure step, the programs it is compiled into, and the loop on the host."""
