"""The command line of vdq in a checkout, the same as ``vdq``. ``python run.py --help`` explains."""

from vdq.__main__ import main

if __name__ == "__main__":
    main()
