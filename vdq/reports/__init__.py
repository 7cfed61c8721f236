"""Tables, figures and the gallery, made from the registry of finished runs."""
