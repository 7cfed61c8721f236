"""The measurements of `'stages=[benchmark]'`: times taken in turn, a random block, the machine's peak and peers."""
