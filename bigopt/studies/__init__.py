"""Studies: pictures and tables made from what runs leave behind."""
