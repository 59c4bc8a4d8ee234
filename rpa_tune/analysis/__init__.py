"""What is true of one config, or of one server: explained, verified, audited, advised."""
