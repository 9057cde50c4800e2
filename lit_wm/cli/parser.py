"""The parser of the verbs: a mistake is one line, said by the dispatcher."""

from __future__ import annotations

import argparse
from typing import NoReturn

from lit_wm.errors import UserError


class OneLineArgumentParser(argparse.ArgumentParser):
    """Raises instead of printing the usage; ``prog`` must be ``lit-wm VERB``, with which the message begins and ends."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{self.prog.removeprefix('lit-wm ')}: {message}; {self.prog} --help shows the options")
