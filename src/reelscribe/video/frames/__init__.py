"""Which frames a model is shown, at which times and size. Nothing here decodes."""
