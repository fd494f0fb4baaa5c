"""What an agent does, in its log."""

import logging

from diastole.client.terms import Progress

LOG = logging.getLogger(__name__)


def tell(progress: Progress) -> None:
    """Log one thing that the agent did."""
    where = f"round {progress.round}: "
    if progress.outcome == "declined":
        LOG.warning("%sdeclined %s: %s", where, progress.spec, progress.reason)
    elif progress.outcome == "paused":
        LOG.info("paused: %s", progress.reason)
    elif progress.outcome == "going on":
        LOG.info("going on")
    elif not progress.outcome:
        LOG.debug("%s%s is trained", where, progress.spec)
    else:
        spent = f"trained in {progress.seconds:.2f} s, loss {progress.loss:.3f}"
        LOG.info("%s%s %s, %s", where, progress.spec, spent, progress.outcome)
