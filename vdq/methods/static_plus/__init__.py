"""The method that this project adds: static, with every transform that costs little at run time."""
