"""What the service knows without HTTP and without a database."""
