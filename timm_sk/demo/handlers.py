"""From what a visitor sends to what the page shows; whatever goes wrong becomes a message, and the page goes on."""

import logging
from pathlib import Path

from ..errors import UnloadableModelError, UnobtainableCheckpointError
from . import analysis
from .html import answer, message
from .models import Models
from .uploads import read_upload

_logger = logging.getLogger(__name__)


def respond(models: Models, path: str | None, checkpoint: str | None, scale: float) -> str:
    """The HTML of a model's answer, or of what went wrong.

    Args:
        models: Where models come from.
        path: The uploaded picture, if there is one.
        checkpoint: The chosen model.
        scale: Of the object.
    """
    if not path:
        return message('Drop a picture, or take an example.')
    if not checkpoint:
        return message('Choose a model and checkpoint.')
    try:
        picture = read_upload(Path(path))
        return answer(analysis.analyse(models.get(checkpoint), picture, scale), checkpoint)
    except (UnobtainableCheckpointError, UnloadableModelError) as error:
        _logger.warning('%s', error)  # which names this machine's folders
        return message(
            f'{checkpoint} could not be loaded: its weights could not be had or read. '
            'Choose another one; the log of this page says why.'
        )
    except ValueError as error:
        return message(str(error))
    except Exception:  # one visitor's failure, of whatever kind, must not be the next one's
        _logger.exception('A request for %s failed.', checkpoint)
        return message('Something failed here; the log of this page says what. Try another picture or model.')
