"""A web service that classifies photographs with an exported model.

`timm-sk export sknet_atto.shapes net.onnx --dynamic-size && MODEL=net.onnx uvicorn --app-dir examples serve:app`, then
`curl -H 'Content-Type: application/octet-stream' --data-binary @photo.png http://127.0.0.1:8000/predict`.
Needs `pip install '.[openvino]' fastapi uvicorn`.
"""

import io
import os
from typing import Annotated

import timm.data
from fastapi import Body, FastAPI, HTTPException
from PIL import Image, ImageOps

import timm_sk

MAX_BYTES = 10_000_000
TOP = 3

app = FastAPI()
model = timm_sk.load_deployed(os.environ['MODEL'])
transform = timm.data.create_transform(**timm.data.resolve_data_config(model.pretrained_cfg))
names = model.metadata['label_names']
Image.MAX_IMAGE_PIXELS = 50_000_000


@app.post('/predict')
def predict(
    file: Annotated[bytes, Body(media_type='application/octet-stream', max_length=MAX_BYTES)],
) -> dict[str, float]:
    """The likeliest classes of one image. Requests run in threads, which share the model."""
    try:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(file))).convert('RGB')
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise HTTPException(415, 'Not an image that can be read.') from error
    probabilities, classes = model(transform(image)[None]).softmax(dim=1)[0].topk(min(TOP, len(names)))
    return {
        names[number]: round(share, 4) for share, number in zip(probabilities.tolist(), classes.tolist(), strict=True)
    }
