"""The trainer script with a pause after every update, so that a test finds time to break it off;
see `test_elastic`.

The environment says how long the pauses are (PACE, seconds), and which process shall fail at which
update (FAIL_AT, rank:update).
"""

import os
import sys
import time

from nercrf import run_ner_crf
from nercrf.training.update import Learner

update = Learner.update
fail_at = os.environ.get("FAIL_AT", "").split(":")


def paced_update(run, sentences):
    """An update, perhaps a failure, and a pause."""
    update(run, sentences)
    if fail_at == [str(run.info.rank), str(run.progress.step)]:
        raise RuntimeError(f"this test wants process {run.info.rank} to fail")
    time.sleep(float(os.environ.get("PACE", "0")))


if __name__ == "__main__":
    Learner.update = paced_update
    sys.exit(run_ner_crf.main())
