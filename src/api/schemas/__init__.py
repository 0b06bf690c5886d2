"""The shape of what travels. Whatever is refused here is a 422 that names the field."""
