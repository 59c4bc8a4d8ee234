"""`python -m rpa_tune`."""

from rpa_tune.cli.main import main

if __name__ == "__main__":
    main()
