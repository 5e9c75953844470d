"""Export to ONNX and OpenVINO, the engines, and int8, with the real packages."""

import collections
import copy
import pickle
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import timm
import torch
from random_weights import fill_model
from timm_pair import NETS, SMALL, images, pair

import timm_sk
from benchmarks import engines as engines_benchmark
from timm_sk.data import shapes
from timm_sk.inference.engines import ENGINES, EngineModel, installed_engines
from timm_sk.inference.graph_export import compare
from timm_sk.inference.int8 import _CHOICES, _nodes_of_weights
from timm_sk.pretrained import bundled_folder

pytestmark = pytest.mark.integration
onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
SIZE = (3, 32, 32)
TOLERANCE = 1e-5
RADIX_4 = SMALL | dict(channels=(32, 32, 32, 32), base_width=64, stem_width=8)  # of resnest50d_4s2x40d


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
    assert (deployed.engine, deployed.input_shape, deployed.num_features) == (engine, [2, *SIZE], model.num_features)
    for count, size in ((2, 32), (1, 32), (3, 64)):
        x = images(count, size).float()
        assert_close(deployed(x), model(x))
    x = images(2).float()
    for copied in (copy.deepcopy(deployed), pickle.loads(pickle.dumps(deployed))):
        assert torch.equal(copied(x), deployed(x))
    assert deployed.to('cpu') is deployed.cpu() is deployed.float() is deployed.eval() is deployed
    for refused in (deployed.train, deployed.half, lambda: deployed.forward_features(x), lambda: deployed.to('cuda')):
        with pytest.raises(ValueError, match=engine):
            refused()


@torch.no_grad()
def test_feature_maps(engine):
    options = NETS['skresnet18'] | dict(num_classes=0, features_only=True)
    for model in (
        timm.create_model('skresnet18', **options).eval(),
        timm.create_model('skresnet18', feature_cls='getter', **options).eval(),
    ):
        found = timm_sk.deploy(model, engine=engine, input_size=SIZE)(images(2).float())
        for ours, expected in zip(found, model(images(2).float()), strict=True):
            assert_close(ours, expected)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('skresnet18', NETS['skresnet18'] | dict(in_chans=1)),
        ('skresnet18', NETS['skresnet18'] | dict(in_chans=5)),
        ('skresnet18', NETS['skresnet18'] | dict(num_classes=0)),
        ('sknet50_3path', SMALL | dict(channels=(32, 32, 32, 32))),
        ('resnest50d_4s2x40d', RADIX_4),
        ('sk_shufflenetv2_x0_5', {}),
        ('sk_mobilenetv2_100', {}),
    ],
)
@torch.no_grad()
def test_other_models(name, options, engine):
    model = fill_model(timm.create_model(name, **options)).eval()
    x = torch.rand(2, options.get('in_chans', 3), 64, 64)
    deployed = timm_sk.deploy(model, engine=engine, input_size=x.shape[1:])
    assert_close(deployed(x), model(x))
    if engine == 'onnxruntime' and name == 'sknet50_3path':  # the exporter fixes its size
        with pytest.raises(ValueError, match=r'Got: 47 Expected: 64'):
            deployed(x[:, :, :47, :33])
    else:
        assert_close(deployed(x[:, :, :47, :33]), model(x[:, :, :47, :33]))


@torch.no_grad()
def test_shapes_stay_compiled(monkeypatch, shapes_model):
    deployed = timm_sk.deploy(shapes_model, engine='onnxruntime')
    compiled, compile_shape = [], deployed._compile
    monkeypatch.setattr(deployed, '_compile', lambda x: compiled.append(x.shape[-1]) or compile_shape(x))
    with ThreadPoolExecutor(8) as threads:
        assert len(list(threads.map(deployed, [torch.zeros(1, 3, 40, 40)] * 8))) == 8
    assert compiled == [40]
    for size in (48, 40, 56, 40, 64, 40, 72, 40, 48):
        deployed(torch.zeros(1, 3, size, size))
    assert compiled == [40, 48, 56, 64, 72, 48]


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
    timm_sk.deploy(shapes_model, engine='auto', compile=False, channels_last=False)
    assert len(measured) == 2  # another time of torch


def test_auto_with_an_engine_that_fails(monkeypatch, tmp_path, shapes_model, caplog):
    monkeypatch.setenv('TIMM_SK_HOME', str(tmp_path))
    times = {'torch': [3.0] * 7, 'onnxruntime': [1.0] * 7, 'openvino': [2.0] * 7}
    monkeypatch.setattr(
        'timm_sk.inference.engine_choice.measure', lambda runs, device: {name: times[name] for name in runs}
    )
    assert timm_sk.deploy(shapes_model, engine='auto', compile=False).engine == 'onnxruntime'
    with monkeypatch.context() as patched:
        patched.setattr('timm_sk.optional_packages.find_spec', lambda name: None)
        patched.setattr('timm_sk.inference.engine_choice.installed_engines', lambda: list(ENGINES))
        assert timm_sk.deploy(shapes_model, engine='auto', compile=False).engine == 'torch'
    assert 'onnxruntime is left out: onnxruntime is not installed' in caplog.text
    assert timm_sk.deploy(shapes_model, engine='auto', compile=False).engine == 'onnxruntime'


@torch.no_grad()
def test_exported_files(tmp_path, shapes_model):
    x, _ = drawn(5, seed=1)
    found = EngineModel(timm_sk.export(shapes_model, tmp_path / 'net.onnx', dynamic_size=True), 'onnxruntime')
    assert_close(found(x), shapes_model(x))
    assert found(torch.zeros(1, 3, 48, 40)).shape == (1, 8)
    assert found.metadata['label_names'] == list(shapes.CLASS_NAMES)
    assert found.metadata['preprocessing'] == dict(
        mean=[0.5] * 3, std=[0.5] * 3, interpolation='bilinear', crop_pct=1.0, crop_mode='center'
    )
    ring = bundled_folder('sknet_atto.shapes') / 'examples' / 'ring.png'
    (expected,), (prediction,) = timm_sk.predict(shapes_model, ring), timm_sk.predict(found, ring)
    assert prediction.labels == expected.labels
    assert prediction.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    (opset,) = (entry.version for entry in onnx.load(tmp_path / 'net.onnx').opset_import if entry.domain == '')
    assert opset == 20
    pytest.importorskip('openvino')
    found = EngineModel(timm_sk.export(shapes_model, tmp_path / 'net.xml'), 'openvino')
    assert_close(found(x), shapes_model(x))
    assert found.metadata['architecture'] == 'sknet_atto'


@torch.no_grad()
def test_embedded_preprocessing(tmp_path, shapes_model):
    pixels, _ = shapes.draw(4, seed=3, size=40)
    path = timm_sk.export(shapes_model, tmp_path / 'net.onnx', embed_preprocessing=True, dynamic_size=True)
    x = torch.from_numpy(pixels)[:, :33]
    expected = shapes_model(x.permute(0, 3, 1, 2) / 127.5 - 1).softmax(1)
    for engine in installed_engines():
        found = timm_sk.load_deployed(path, engine=engine)
        assert_close(found(x), expected)
        with pytest.raises(ValueError, match=r'must be uint8 images, got torch\.float32'):
            found(x.float())
    grey = timm.create_model('sknet_atto', in_chans=4, num_classes=3).eval()
    with pytest.raises(ValueError, match='grey or RGB'):
        timm_sk.export(grey, tmp_path / 'other.onnx', embed_preprocessing=True)


def test_refused_exports(tmp_path, shapes_model):
    taken = tmp_path / 'taken.onnx'
    taken.write_bytes(b'mine')
    second = tmp_path / 'second.bin'
    second.write_bytes(b'mine')
    for path, options, message in (
        (taken, {}, 'exists already'),
        (tmp_path / 'second.xml', {}, r'second\.bin exists already'),
        (tmp_path / 'net.onnx', dict(format='openvino'), r'ends in \.xml'),
        (tmp_path / 'none' / 'net.onnx', {}, 'is not a folder'),
        (tmp_path / 'net.onnx', dict(half=True), 'in format openvino'),
    ):
        with pytest.raises(ValueError, match=message):
            timm_sk.export(shapes_model, path, **options)
    with pytest.raises(ValueError, match=r'train mode.*eval\(\)'):
        timm_sk.export(copy.deepcopy(shapes_model).train(), tmp_path / 'net.onnx')
    with pytest.raises(ValueError, match=r'Expected a torch\.nn\.Module, got str'):
        timm_sk.export('skresnet34', tmp_path / 'net.onnx')

    class Bessel(torch.nn.Module):
        def forward(self, x):
            return torch.special.bessel_j0(x)

    with pytest.raises(ValueError, match=r'cannot be exported to ONNX: .*bessel_j0'):
        timm_sk.export(Bessel().eval(), tmp_path / 'net.onnx', input_size=SIZE)
    assert {*tmp_path.iterdir()} == {taken, second}
    assert (taken.read_bytes(), second.read_bytes()) == (b'mine', b'mine')


def test_wrong_export_is_not_written(tmp_path, shapes_model, monkeypatch):
    broken = copy.deepcopy(shapes_model)
    broken.fc.weight.data *= 1.001
    monkeypatch.setattr('timm_sk.inference.graph_export.graph_form', lambda model: broken)
    with pytest.raises(ValueError, match='differs from the original'):
        timm_sk.export(shapes_model, tmp_path / 'net.onnx')
    assert not list(tmp_path.iterdir())


def test_rounding_of_the_model_itself_is_accepted(tmp_path, shapes_model):
    exported = timm_sk.load_deployed(timm_sk.export(shapes_model, tmp_path / 'net.onnx'), engine='onnxruntime')
    x, _ = drawn(3, seed=1)
    compare(exported, shapes_model, x, 0.0)
    broken = copy.deepcopy(shapes_model)
    broken.fc.weight.data *= 1 + 1e-4
    with pytest.raises(ValueError, match='differs from the original'):
        compare(exported, broken, x, 0.0)


@torch.no_grad()
def test_quantize(tmp_path, engine, shapes_model):
    calibration, _ = drawn(64, seed=5)
    quantized = timm_sk.quantize(shapes_model, [calibration], engine=engine)
    assert quantized.metadata['int8']['images'] == 64
    x, labels = drawn(500, seed=shapes.TEST_SEED)
    accuracies = [(model(x).argmax(1) == labels).float().mean().item() for model in (shapes_model, quantized)]
    assert abs(accuracies[0] - accuracies[1]) <= 0.005
    assert quantized(x[:3]).shape == (3, 8)
    assert quantized(torch.zeros(1, 3, 48, 33)).shape == (1, 8)
    path = quantized.save(tmp_path / 'int8.onnx')
    weights = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in weights
    loaded = timm_sk.load_deployed(path, engine=engine)
    assert torch.equal(loaded(x[:3]), quantized(x[:3]))
    assert torch.equal(
        timm_sk.load_deployed(loaded.save(tmp_path / 'again.onnx'), engine=engine)(x[:3]), quantized(x[:3])
    )


@pytest.mark.parametrize(
    ('name', 'options', 'attention', 'others'),
    [
        ('skresnet18', NETS['skresnet18'], 2 * 4, {'conv1', 'fc'}),
        ('resnest50d_4s2x40d', RADIX_4, 2 * 4, {'conv1', 'fc'}),
        ('sk_mobilenetv2_100', {}, 2 * 17, {'conv_stem', 'classifier'}),
    ],
)
def test_layers_in_float32(name, options, attention, others, tmp_path):
    model = fill_model(timm.create_model(name, **options)).eval()
    path = timm_sk.export(model, tmp_path / 'net.onnx', input_size=(3, 64, 64))
    weights = {node.name: node.input[1] for node in onnx.load(path).graph.node if node.op_type in ('Conv', 'Gemm')}
    kept = [{weights[node] for node in _nodes_of_weights(path, _CHOICES[choice])} for choice in list(_CHOICES)[1:]]
    assert len(kept[0]) == attention
    assert {weight.split('.')[0] for weight in kept[1] - kept[0]} == others


@torch.no_grad()
def test_quantized_backbone(engine):
    model = timm.create_model('sknet_atto.shapes', pretrained=True, features_only=True).eval()
    calibration, _ = drawn(32, seed=5)
    quantized = timm_sk.quantize(model, [calibration], engine=engine)
    assert 'agreement' not in quantized.metadata['int8']
    for ours, theirs in zip(quantized(calibration), model(calibration), strict=True):
        assert (ours - theirs).norm() <= 0.1 * theirs.norm()


def test_refused_calibration(shapes_model):
    with pytest.raises(ValueError, match=r'at least 16 images, got 8'):
        timm_sk.quantize(shapes_model, [torch.zeros(8, 3, 32, 32)])
    with pytest.raises(ValueError, match=r'got \[16, 3, 24, 24\]'):
        timm_sk.quantize(shapes_model, [torch.zeros(16, 3, 24, 24)])
    with pytest.raises(ValueError, match=r'normalized floating-point numbers, got torch\.uint8'):
        timm_sk.quantize(shapes_model, [torch.zeros(16, 3, 32, 32, dtype=torch.uint8)])
    with pytest.raises(ValueError, match=r'train mode.*eval\(\)'):
        timm_sk.quantize(copy.deepcopy(shapes_model).train(), [torch.zeros(16, 3, 32, 32)])


def test_no_telemetry(engine, monkeypatch, shapes_model, tmp_path):
    monkeypatch.setattr(socket, 'socket', lambda *args, **kwargs: pytest.fail('a socket was opened'))
    timm_sk.deploy(shapes_model, engine=engine, remember=False)(torch.zeros(1, 3, 32, 32))
    quantized = timm_sk.quantize(shapes_model, [drawn(16, seed=5)[0]], engine=engine)
    timm_sk.load_deployed(quantized.save(tmp_path / 'int8.onnx'), engine=engine)(torch.zeros(1, 3, 32, 32))


@torch.no_grad()
def test_models_of_the_benchmark(tmp_path):
    models = engines_benchmark.Models('skresnet18', 64, tmp_path)
    models.export(other_quantizers=False)
    x = models.calibration[:2]
    for name in ('timm onnxruntime', 'ours onnxruntime'):
        assert_close(models.builders[name](len(x))(x), models.timm(x))
    int8 = models.builders['ours int8 onnxruntime'](len(x))(x)
    assert (int8 - models.timm(x)).abs().max() <= engines_benchmark.TOLERANCE['int8'] * models.timm(x).abs().max()
