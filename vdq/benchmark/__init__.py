"""What `'stages=[benchmark]'` measures: times in turn, a random STDiT-XL/2 block, the machine's peak, peers."""
