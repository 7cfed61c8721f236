"""Commands beside `python run.py`: each is run as `python -m vdq.commands.NAME`."""
