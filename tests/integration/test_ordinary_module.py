"""Tools that take any nn.Module treat ours as they treat timm's class: the same values, in train and eval mode."""

import re
from typing import Any

import pytest
import torch
from timm_pair import (
    assert_differs,
    assert_same,
    each_family,
    each_form,
    each_mode,
    each_net,
    images,
    in_form,
    pair,
    run_step,
)
from torch import Tensor, nn

pytestmark = [
    pytest.mark.integration,
    pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning', 'ignore::UserWarning'),
]


@each_net
@each_mode
@pytest.mark.parametrize('way', ['cpu', 'disk', 'dispatch'])
def test_accelerate_offloading(name, training, way, tmp_path):
    """Weights are on the meta device but for the time of their module's forward."""
    accelerate = pytest.importorskip('accelerate')

    def transform(model: nn.Module, folder: str) -> list[Any]:
        if way == 'cpu':
            accelerate.cpu_offload(model, execution_device=torch.device('cpu'), offload_buffers=not training)
        elif way == 'disk':
            accelerate.disk_offload(model, tmp_path / folder, execution_device=torch.device('cpu'))
        else:
            devices = {key: 'disk' if key.startswith('layer') else 'cpu' for key, _ in model.named_children()}
            accelerate.dispatch_model(model, devices, main_device='cpu', offload_dir=tmp_path / folder)
        assert model.layer1[0].conv1.get_parameter(next(iter(model.layer1[0].conv1.state_dict()))).is_meta
        x = images().requires_grad_()
        output = model(x)
        output.sin().sum().backward()
        with torch.no_grad():
            return [output.detach(), x.grad, model(images())]

    ours, theirs = pair(name, training=training)
    assert_same(transform(ours, 'ours'), transform(theirs, 'theirs'))


@pytest.mark.parametrize('name', ['skresnext50_32x4d'])
@each_mode
def test_torch_pruning(name, training):
    """Channels of the whole net, attention and groups too, in proportion.

    timm's skresnet18 comes out broken ("expected input[4, 32, 8, 8] to have 23 channels"): its branches share the
    channels of the input, which torch-pruning does not follow.
    """
    torch_pruning = pytest.importorskip('torch_pruning')

    def transform(model: nn.Module) -> list[Any]:
        x = images(2)
        pruner = torch_pruning.pruner.MagnitudePruner(
            model,
            x,
            importance=torch_pruning.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.25,
            ignored_layers=[model.fc],
        )
        pruner.step()
        shapes = {key: tuple(parameter.shape) for key, parameter in model.named_parameters()}
        return [sum(p.numel() for p in model.parameters()), shapes, run_step(model.train(training))]

    ours, theirs = pair(name, channels=(32, 32, 64, 64))
    before = sum(p.numel() for p in theirs.parameters())
    expected = transform(theirs)
    assert expected[0] < 0.8 * before
    assert_same(transform(ours), expected)


@each_family
@torch.no_grad()
def test_torchao_weights_in_int8(name):
    quantization = pytest.importorskip('torchao.quantization')

    def transform(model: nn.Module) -> Tensor:
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig(version=2))
        assert type(model.fc.weight) is not nn.Parameter
        return model(images(dtype=torch.float32))

    ours, theirs = pair(name, dtype=torch.float32, num_classes=64)
    assert_same(transform(ours), transform(theirs), tolerance=1e-4)


@each_family
@torch.no_grad()
def test_torchao_quantized_export(name):
    """Convolutions in int8, by observers in an exported program: close to the net, as timm's quantised class is.

    Not of folded nets, which timm does not have: torchao finds convolutions by their module's class, `nn.Conv2d`.
    """
    quantize = pytest.importorskip('torchao.quantization.pt2e.quantize_pt2e')
    x86 = pytest.importorskip('torchao.quantization.pt2e.quantizer.x86_inductor_quantizer')

    def transform(model: nn.Module) -> tuple[Tensor, int]:
        x = images(8, dtype=torch.float32)
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = quantize.prepare_pt2e(torch.export.export(model, (x,)).module(), quantizer)
        prepared(x)
        converted = quantize.convert_pt2e(prepared)
        calls = [str(node.target) for node in converted.graph.nodes if node.op == 'call_function']
        return converted(x), sum('dequantize_per_channel' in call for call in calls)

    ours, theirs = pair(name, dtype=torch.float32)
    expected = theirs(images(8, dtype=torch.float32))
    found, count = transform(ours)
    their_output, their_count = transform(theirs)
    assert count == their_count
    error, their_error = ((output - expected).norm() / expected.norm() for output in (found, their_output))
    assert 0 < error <= max(2 * their_error, 0.05)


@each_family
@each_mode
def test_quantisation_aware_training(name, training):
    """Fake-quantised convolutions and linear layers take the place of the modules."""
    quantization = pytest.importorskip('torch.ao.quantization')
    from torch.ao.nn import qat

    def transform(model: nn.Module) -> list[dict[str, Tensor]]:
        qconfig = quantization.get_default_qat_qconfig('x86')
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.qconfig = qconfig
        replaced = {nn.Conv2d: qat.Conv2d, nn.Linear: qat.Linear}
        model.train()
        quantization.convert(model, mapping=replaced, inplace=True, remove_qconfig=False)
        assert type(model.fc) is qat.Linear
        model.train(training)
        return [run_step(model, images(dtype=torch.float32)) for _ in range(2)]

    ours, theirs = pair(name, dtype=torch.float32)
    expected, found = transform(theirs), transform(ours)
    # a value between two steps of 8 bits rounds up or down
    assert_same([step['output'] for step in found], [step['output'] for step in expected], tolerance=2e-2)


@each_net
@each_mode
def test_peft_lora(name, training):
    """Adapters of convolutions, and the classifier: gradients, a step, then merged into the weights.

    Not of dilated ones, whose dilation peft's adapters drop, in timm's class too: "The size of tensor a (8) must match
    the size of tensor b (10)".
    """
    peft = pytest.importorskip('peft')

    def transform(model: nn.Module) -> list[Any]:
        targets = [
            key
            for key, module in model.named_modules()
            if isinstance(module, nn.Conv2d) and module.groups == 1 and module.dilation == (1, 1)
        ]
        config = peft.LoraConfig(
            r=2, lora_alpha=4, target_modules='|'.join(map(re.escape, targets)), modules_to_save=['fc']
        )
        torch.manual_seed(0)
        adapted = peft.get_peft_model(model, config).double()
        for key, parameter in adapted.named_parameters():
            if 'lora_B' in key:
                parameter.data = torch.linspace(-0.1, 0.1, parameter.numel()).double().view_as(parameter)
        steps = [run_step(adapted.train(training))]
        optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.01)
        optimizer.step()
        adapted.eval()
        with torch.no_grad():
            before = adapted(images())
            merged = adapted.merge_and_unload()
            assert_same(merged(images()), before)
            return [{key.replace('base_model.model.', ''): t for key, t in steps[0].items()}, before]

    ours, theirs = pair(name)
    plain = theirs(images())
    found = [transform(model) for model in (ours, theirs)]
    assert_differs(found[1][1], plain)
    assert_same(*found)


@each_net
@each_mode
@pytest.mark.parametrize('method', ['IntegratedGradients', 'LayerGradCam', 'GuidedBackprop', 'Saliency'])
def test_captum(name, training, method):
    """GuidedBackprop hooks every ReLU's backward pass."""
    attr = pytest.importorskip('captum.attr')
    unit = 'conv1' if name == 'skresnet18' else 'conv2'

    def transform(model: nn.Module) -> Tensor:
        if method == 'IntegratedGradients':
            return attr.IntegratedGradients(model).attribute(images(2), target=1, n_steps=5, internal_batch_size=4)
        if method == 'LayerGradCam':
            return attr.LayerGradCam(model, model.layer3[0].get_submodule(unit)).attribute(images(), target=1)
        for module in model.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        return getattr(attr, method)(model).attribute(images().requires_grad_(), target=1)

    ours, theirs = pair(name, training=training)
    assert_same(transform(ours), transform(theirs))


@each_net
@pytest.mark.parametrize('method', ['GradCAM', 'GradCAMPlusPlus', 'EigenCAM', 'LayerCAM', 'ScoreCAM'])
def test_grad_cam(name, method):
    cam = pytest.importorskip('pytorch_grad_cam')
    target = pytest.importorskip('pytorch_grad_cam.utils.model_targets').ClassifierOutputTarget

    def transform(model: nn.Module) -> Tensor:
        unit = model.layer2[0].get_submodule('conv1' if name == 'skresnet18' else 'conv2')
        model = model.float()
        with getattr(cam, method)(model=model, target_layers=[unit, model.layer4[-1]]) as explain:
            return torch.from_numpy(explain(images(2, dtype=torch.float32), targets=[target(1), target(2)]))

    assert_same(*map(transform, pair(name)), tolerance=1e-3)


@each_net
def test_grad_cam_guided_backpropagation(name):
    """Which puts another function into the place of every ReLU."""
    cam = pytest.importorskip('pytorch_grad_cam')

    def transform(model: nn.Module) -> Tensor:
        explain = cam.GuidedBackpropReLUModel(model=model.float(), device=torch.device('cpu'))
        return torch.from_numpy(explain(images(1, dtype=torch.float32), target_category=1).copy())

    assert_same(*map(transform, pair(name)), tolerance=1e-3)


@each_net
@each_mode
def test_fvcore_counts(name, training):
    fvcore = pytest.importorskip('fvcore.nn')

    def transform(model: nn.Module) -> list[Any]:
        flops = (
            fvcore.FlopCountAnalysis(model, images(2)).unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        )
        activations = fvcore.ActivationCountAnalysis(model, images(2)).unsupported_ops_warnings(False)
        by_operator = flops.by_operator()
        return [
            {key: by_operator[key] for key in ('conv', 'linear')},
            activations.total(),
            fvcore.parameter_count(model)[''],
            {key: fvcore.parameter_count(model)[key] for key in ('layer1', 'layer2.0', 'fc')},
            {key: flops.by_module_and_operator()[key]['conv'] for key in ('layer1', 'layer2.0.conv2', 'layer4')},
        ]

    ours, theirs = pair(name, training=training)
    assert transform(ours) == transform(theirs)


@each_net
@each_mode
def test_torchinfo_counts(name, training):
    torchinfo = pytest.importorskip('torchinfo')

    def transform(model: nn.Module) -> list[Any]:
        mode = 'train' if training else 'eval'
        found = torchinfo.summary(model, input_data=images(2), verbose=0, mode=mode, depth=10)
        convolutions = [
            (layer.class_name, layer.input_size, layer.output_size, layer.num_params, layer.macs)
            for layer in found.summary_list
            if layer.class_name in ('Conv2d', 'Linear')
        ]
        return [found.total_params, found.trainable_params, convolutions]

    ours, theirs = pair(name)
    assert transform(ours) == transform(theirs)


@each_net
@each_form
@torch.no_grad()
def test_onnx_takes_any_batch(name, form, tmp_path):
    pytest.importorskip('onnxscript')
    onnxruntime = pytest.importorskip('onnxruntime')
    ours, theirs = pair(name, dtype=torch.float32)
    x = images(2, dtype=torch.float32)
    shapes = ({0: torch.export.Dim('batch')},)
    program = torch.onnx.export(in_form(ours, form), (x,), dynamo=True, dynamic_shapes=shapes, verbose=False)
    program.save(tmp_path / 'model.onnx')
    session = onnxruntime.InferenceSession(tmp_path / 'model.onnx')
    assert isinstance(session.get_inputs()[0].shape[0], str)
    for count in (1, 3, 8):
        x = images(count, dtype=torch.float32)
        found = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
        assert_same(torch.from_numpy(found), theirs(x), tolerance=1e-4)
