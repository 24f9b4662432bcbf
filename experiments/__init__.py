"""Programs: run them, fork them. The library never imports them."""
