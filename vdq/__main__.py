"""The command line of vdq, ``vdq`` or ``python -m vdq``: composes a configuration and runs its stages."""

import os
import sys

# Threads of a product that wait for each other sleep: on a shared machine, spinning costs six times the time.
# This must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from vdq.cli import flags_first, one_sentence, opened
from vdq.installation import CONF
from vdq.processes import end_on_sigterm, end_workers

WANTS_TRACEBACK = "HYDRA_FULL_ERROR" in os.environ
failed: list[str] = []  # sentences of the runs of a sweep that were refused


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
def compose_and_run(cfg: DictConfig) -> str | None:
    """Runs the stages of one composed configuration; returns the name of the run folder."""
    from vdq.commands.run import run  # imports torch, which --help and --cfg job do not need

    try:
        return run(cfg)
    except Exception as error:
        if HydraConfig.get().mode == RunMode.MULTIRUN and (message := one_sentence(error)):
            print(f"error: {message}", file=sys.stderr)  # the other runs of the sweep go on
            failed.append(message)
            return None
        leave(error)


def leave(error: Exception) -> None:
    """Ends the program with one sentence for an error of the user's, with a traceback for one of the program's."""
    message = one_sentence(error)
    if WANTS_TRACEBACK or message is None:
        raise error
    sys.exit(f"error: {message}")


def main() -> None:
    """Runs what the arguments of the process say and ends it: with 1 if something was refused."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors of the configuration reach us instead of being printed by Hydra
    try:
        end_on_sigterm()
        sys.argv[1:] = opened(flags_first(sys.argv[1:]))
        compose_and_run()
        sys.exit(1 if failed else 0)
    except Exception as error:
        leave(error)
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        end_workers()
        sys.exit("\nstopped; the same command goes on from here")  # Lightning turns Ctrl-C into SystemExit


if __name__ == "__main__":
    main()
