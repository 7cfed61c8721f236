"""The built-in testbed: procedural captioned videos and the small models trained on them."""
