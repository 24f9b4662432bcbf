"""Speed, always as a ratio against something named, read in the same run."""
