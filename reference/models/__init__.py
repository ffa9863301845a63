"""torch's counterparts of impl.models, one family a file."""
