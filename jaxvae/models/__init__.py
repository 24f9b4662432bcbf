"""One file is one variant: its module, its output record, its objective."""
