"""From a visitor's inputs to the HTML of an answer; every error becomes a message, and the page keeps working."""

import logging
from pathlib import Path

from ..checkpoints import CHECKPOINTS
from ..errors import UnloadableModelError, UnobtainableCheckpointError
from ..inference.prediction import trained_on
from . import analysis
from .choices import MANUAL, OFFLINE, why_unavailable
from .html import answer, message
from .maps import maps
from .model_cache import ModelCache
from .uploads import read_upload

_logger = logging.getLogger(__name__)


def respond(models: ModelCache, path: str | None, checkpoint: str | None, scale: float) -> str:
    """The HTML of a model's answer, or of an error message.

    Args:
        models: Models of the page.
        path: Uploaded image, if there is one.
        checkpoint: Chosen model.
        scale: Magnification of the object.
    """
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
        return message(f'{_reason(checkpoint)} Choose a model without a mark in the list.')
    except ValueError as error:
        return message(str(error))
    except Exception:  # one visitor's error must not end the server
        _logger.exception('A request for %s failed.', checkpoint)
        return message('The server failed to answer. Try another image or model.')


def _reason(checkpoint: str) -> str:
    """Why a checkpoint could not be loaded, in a visitor's words."""
    row, why = CHECKPOINTS.get(checkpoint), why_unavailable(checkpoint)
    if row and why == MANUAL:
        return f'The makers of {checkpoint} offer its weights only for download by hand, at {row.sources[0].location}.'
    if why == OFFLINE:
        return f'The weights of {checkpoint} are not on this server, and the server is offline.'
    return f'The weights of {checkpoint} could not be downloaded or loaded.'
