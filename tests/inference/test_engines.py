"""Export to ONNX and OpenVINO, the engines, and int8, with the real packages."""

import collections
import copy
import pickle
import socket

import pytest
import timm
import torch
from timm_pair import NETS, images, pair

import timm_sk
from timm_sk.data import shapes
from timm_sk.inference.engines import ENGINES, EngineModel

pytestmark = pytest.mark.integration
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
SIZE = (3, 32, 32)
TOLERANCE = 1e-5


@pytest.fixture(params=ENGINES)
def engine(request):
    pytest.importorskip(request.param)
    return request.param


@pytest.fixture(scope='module')
def shapes_model():
    return timm.create_model('sknet_atto.shapes', pretrained=True).eval()


def drawn(count, seed):
    """Preprocessed images [N, 3, 32, 32] and labels [N]."""
    pixels, labels = shapes.draw(count, seed=seed)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1, torch.from_numpy(labels)


def assert_close(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= TOLERANCE * expected.abs().max()


def node_count(model, path):
    program = torch.onnx.export(model, (images(2).float(),), dynamo=True, dynamic_shapes=({0: 'batch'},), verbose=False)
    program.save(path)
    return len(onnx.load(path).graph.node)


@pytest.mark.parametrize('name', NETS)
@torch.no_grad()
def test_exported_graph_has_fewer_nodes_than_timms(name, tmp_path):
    ours, theirs = (model.float() for model in pair(name))
    path = timm_sk.export(ours, tmp_path / 'ours.onnx', input_size=SIZE)
    graph = onnx.load(path).graph
    kinds = collections.Counter(node.op_type for node in graph.node)
    assert not kinds.keys() & {'Gather', 'Softmax', 'Concat', 'Unsqueeze', 'BatchNormalization'}
    assert len(graph.node) < node_count(theirs, tmp_path / 'theirs.onnx')


@pytest.mark.parametrize('name', NETS)
@torch.no_grad()
def test_deploy_for_engine(name, engine):
    model = pair(name)[0].float()
    deployed = timm_sk.deploy(model, engine=engine, input_size=SIZE, batch_size=2)
    assert isinstance(deployed, EngineModel)
    for count, size in ((2, 32), (1, 32), (3, 64)):
        x = images(count, size).float()
        assert_close(deployed(x), model(x))
    x = images(2).float()
    for twin in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(twin(x), deployed(x))
    assert deployed.to('cpu') is deployed.eval() is deployed
    for refused in (deployed.train, deployed.half, lambda: deployed.forward_features(x), lambda: deployed.to('meta')):
        with pytest.raises(ValueError, match=engine):
            refused()


@torch.no_grad()
def test_feature_maps(engine):
    model = timm.create_model('skresnet18', features_only=True, **NETS['skresnet18'] | dict(num_classes=0)).eval()
    found = timm_sk.deploy(model, engine=engine, input_size=SIZE)(images(2).float())
    for ours, expected in zip(found, model(images(2).float()), strict=True):
        assert_close(ours, expected)


def test_auto_takes_the_fastest(monkeypatch, tmp_path, shapes_model):
    monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path))
    times = {'torch': [3.0] * 7, 'onnxruntime': [1.0] * 7, 'openvino': [2.0] * 7}
    measured = []

    def measure(runs, device):
        measured.append(list(runs))
        return {name: times[name] for name in runs}

    monkeypatch.setattr('timm_sk.inference.engine_choice.measure', measure)
    for _ in range(2):  # the second time it is remembered
        deployed = timm_sk.deploy(shapes_model, engine='auto', compile=False)
        assert deployed.engine == 'onnxruntime'
    assert len(measured) == 1
    assert set(measured[0]) >= {'torch', 'onnxruntime'}


@torch.no_grad()
def test_exported_files(tmp_path, shapes_model):
    x, _ = drawn(5, seed=1)
    found = EngineModel(timm_sk.export(shapes_model, tmp_path / 'net.onnx', dynamic_size=True), 'onnxruntime')
    assert_close(found(x), shapes_model(x))
    assert found(torch.zeros(1, 3, 48, 40)).shape == (1, 8)
    assert found.metadata['label_names'] == list(shapes.CLASS_NAMES)
    assert found.metadata['preprocessing'] == dict(
        mean=[0.5] * 3, std=[0.5] * 3, interpolation='bilinear', crop_pct=1.0
    )
    (opset,) = (entry.version for entry in onnx.load(tmp_path / 'net.onnx').opset_import if entry.domain == '')
    assert opset == 20
    pytest.importorskip('openvino')
    found = EngineModel(timm_sk.export(shapes_model, tmp_path / 'net.xml'), 'openvino')
    assert_close(found(x), shapes_model(x))
    assert found.metadata['architecture'] == 'sknet_atto'


@torch.no_grad()
def test_embedded_preprocessing(tmp_path, shapes_model):
    pixels, _ = shapes.draw(4, seed=3)
    found = EngineModel(timm_sk.export(shapes_model, tmp_path / 'net.onnx', embed_preprocessing=True), 'onnxruntime')
    expected = shapes_model(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).softmax(1)
    assert_close(found(torch.from_numpy(pixels)), expected)


def test_refused_exports(tmp_path, shapes_model):
    taken = tmp_path / 'taken.onnx'
    taken.write_bytes(b'mine')
    for path, options, message in (
        (taken, {}, 'exists already'),
        (tmp_path / 'net.pth', {}, 'no known ending'),
        (tmp_path / 'net.onnx', dict(format='openvino'), r'ends in \.xml'),
        (tmp_path / 'net.onnx', dict(format='tflite'), 'Unknown format'),
        (tmp_path / 'none' / 'net.onnx', {}, 'is not a folder'),
        (tmp_path / 'net.onnx', dict(half=True), 'in format openvino'),
    ):
        with pytest.raises(ValueError, match=message):
            timm_sk.export(shapes_model, path, **options)
    with pytest.raises(ValueError, match='eval mode'):
        timm_sk.export(copy.deepcopy(shapes_model).train(), tmp_path / 'net.onnx')
    assert list(tmp_path.iterdir()) == [taken]
    assert taken.read_bytes() == b'mine'


def test_wrong_export_is_not_written(tmp_path, shapes_model, monkeypatch):
    broken = copy.deepcopy(shapes_model)
    broken.fc.weight.data *= 1.001
    monkeypatch.setattr('timm_sk.inference.graph_export.graph_form', lambda model: broken)
    with pytest.raises(ValueError, match='differs from the original'):
        timm_sk.export(shapes_model, tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_quantize(tmp_path, engine, shapes_model):
    calibration, _ = drawn(64, seed=5)
    quantized = timm_sk.quantize(shapes_model, [calibration], engine=engine)
    assert quantized.metadata['int8']['images'] == 64
    x, labels = drawn(500, seed=shapes.TEST_SEED)
    accuracies = [(model(x).argmax(1) == labels).float().mean().item() for model in (shapes_model, quantized)]
    assert abs(accuracies[0] - accuracies[1]) <= 0.005
    assert quantized(x[:3]).shape == (3, 8)
    path = quantized.save(tmp_path / 'int8.onnx')
    weights = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in weights
    assert torch.equal(EngineModel(path, engine)(x[:3]), quantized(x[:3]))


def test_refused_calibration(shapes_model):
    with pytest.raises(ValueError, match=r'at least 16 images, got 8'):
        timm_sk.quantize(shapes_model, [torch.zeros(8, 3, 32, 32)])
    with pytest.raises(ValueError, match=r'got \[16, 3, 24, 24\]'):
        timm_sk.quantize(shapes_model, [torch.zeros(16, 3, 24, 24)])
    with pytest.raises(ValueError, match='eval mode'):
        timm_sk.quantize(copy.deepcopy(shapes_model).train(), [torch.zeros(16, 3, 32, 32)])


def test_no_telemetry(engine, monkeypatch, shapes_model):
    monkeypatch.setattr(socket, 'socket', lambda *args, **kwargs: pytest.fail('a socket was opened'))
    timm_sk.deploy(shapes_model, engine=engine, remember=False)(torch.zeros(1, 3, 32, 32))
