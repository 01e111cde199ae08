"""The shipped model: its two forms are one function, and its PyTorch form is pruned in the user's own class."""

import numpy as np
import torch

import graphprune as gp
from graphprune.demo.model import DemoNet, load_demo_model
from graphprune.demo.run import HERE, accuracy, demo_data
from graphprune.runtime.sessions import run_file


def test_both_forms_agree():
    images, _ = demo_data()
    (logits,) = run_file(HERE / "demo_net.onnx", {"image": images[:50]}).values()
    with torch.no_grad():
        np.testing.assert_allclose(load_demo_model()(torch.from_numpy(images[:50])).numpy(), logits, atol=1e-4)


def test_the_module_is_pruned_saved_and_restored(tmp_path):
    images, labels = demo_data()
    example = (torch.from_numpy(images[:2]),)
    result = gp.prune(load_demo_model(), example, target={"macs": 0.5})
    assert isinstance(result.module, DemoNet)
    result.save_state(tmp_path)
    again = gp.restore(load_demo_model(), tmp_path, example)
    with torch.no_grad():
        guessed = again(torch.from_numpy(images)).argmax(1).numpy()
    assert (guessed == labels).mean() > accuracy(HERE / "demo_net.onnx", images, labels) - 0.05
