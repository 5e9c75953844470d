"""From a visitor's inputs to the HTML of an answer; every error becomes a message, and the page keeps working."""

import logging
from pathlib import Path

from ..errors import UnloadableModelError, UnobtainableCheckpointError
from ..inference.prediction import trained_on
from . import analysis
from .choices import MANUAL, OFFLINE, why_unavailable
from .html import answer, message
from .maps import maps
from .model_cache import ModelCache
from .uploads import read_upload

_logger = logging.getLogger(__name__)
_REASONS = {
    MANUAL: 'they can only be downloaded by hand',
    OFFLINE: 'they are not on this server, which is offline',
    None: 'they could not be downloaded, or are damaged',
}


def respond(models: ModelCache, path: str | None, checkpoint: str | None, scale: float) -> str:
    """The HTML of a model's answer for an uploaded image whose object is magnified, or of an error message."""
    if not path:
        return message('Upload an image, or choose an example.')
    if not checkpoint:
        return message('Choose a model and checkpoint.')
    try:
        image = read_upload(Path(path))
        chosen = models.get(checkpoint)
        found = analysis.analyse(chosen, image, scale)
        return answer(found, checkpoint, trained_on(chosen.model)) + maps(found)
    except (UnobtainableCheckpointError, UnloadableModelError) as error:
        _logger.warning('%s', error)  # not shown to visitors: it names local folders
        why = _REASONS[why_unavailable(checkpoint)]
        return message(f'No weights of {checkpoint}: {why}. Choose a model without a mark in the list.')
    except ValueError as error:
        return message(str(error))
    except Exception:  # one visitor's error must not end the server
        _logger.exception('A request for %s failed.', checkpoint)
        return message('The server failed to answer. Try another image or model.')
