"""Recurrent layers as steps of a plan on a GPU: time steps from call to call, against the reference engine."""

from __future__ import annotations

import numpy as np
import pytest
from cuda_plans import TOLERANCE, distance, pair, program
from seeded import network_input

from gpudarknet import cfg

NET = "[net]\nwidth=4\nheight=3\nchannels=5\n"
FIRST = "[convolutional]\nfilters=6\nsize=3\npad=1\nactivation=tanh\n"
LAST = "[convolutional]\nfilters=7\nsize=1\nactivation=leaky\n"
LAYERS = {
    "rnn": "[rnn]\nhidden=9\noutput=5\nactivation=leaky\n",
    "rnn, normalized": "[rnn]\nhidden=8\noutput=8\nactivation=tanh\nbatch_normalize=1\nshortcut=1\nlogistic=1\n",
    "crnn": "[crnn]\nhidden=6\noutput=5\nsize=3\npad=1\nactivation=leaky\nbatch_normalize=1\n",
    "crnn, shortcut": "[crnn]\nhidden=8\noutput=3\nsize=1\nactivation=relu\nshortcut=1\nlogistic=2\n",
    "crnn, xnor": "[crnn]\nhidden=8\noutput=6\nsize=3\npad=1\nactivation=leaky\nxnor=1\n",
    "gru": "[gru]\noutput=7\n",
    "gru, normalized": "[gru]\noutput=16\nbatch_normalize=1\n",
    "lstm": "[lstm]\noutput=8\n",
    "lstm, normalized": "[lstm]\noutput=5\nbatch_normalize=1\n",
    "conv_lstm": "[conv_lstm]\noutput=5\nsize=3\npad=1\nstate_constrain=.3\n",
    "conv_lstm, peephole": "[conv_lstm]\noutput=8\nsize=3\npad=1\npeephole=1\nbatch_normalize=1\n",
    "conv_lstm, bottleneck": "[conv_lstm]\noutput=6\nsize=1\nbottleneck=1\npeephole=1\nactivation=leaky\nlstm_activation=leaky\n",
    "conv_lstm, activated": "[conv_lstm]\noutput=6\nsize=3\npad=1\nactivation=leaky\n",
}


def host(be, arrays):
    return [be.to_numpy(a) for a in arrays]


@pytest.mark.parametrize("place", ["middle", "first", "last", "joined"])
@pytest.mark.parametrize(("precision", "batch"), [("fp32", 3), ("fp16", 1)])
@pytest.mark.parametrize("name", LAYERS)
def test_steps_in_time(device, tmp_path, name, precision, batch, place):
    body = {
        "middle": FIRST + LAYERS[name] + LAST, "first": LAYERS[name] + LAST, "last": FIRST + LAYERS[name],
        "joined": FIRST + LAYERS[name] + LAST + "[route]\nlayers=-1,-2\n",
    }[place]  # fmt: skip
    reference, net = pair(cfg.parse(NET + body), device, tmp_path, 4)
    run = program(net, batch, precision, poison=device.name == "host-cuda")
    assert run.fallbacks == []
    outputs = []
    for t in range(3):
        x = network_input(reference, t, batch)
        outputs.append(reference.predict(x, engine="reference"))
        assert distance(host(device, run.run(device.asarray(x))), outputs[-1]) < TOLERANCE[precision]
    assert distance(outputs[0], outputs[1]) > 1e-3
    assert (run.graph is None) == (device.name == "host-cuda")


def test_any_engine_and_batch_computes_the_next_step(device, tmp_path):
    """The state is stored with the weights: precision and engine may change between steps; another batch size starts anew."""
    reference, net = pair(cfg.parse(NET + FIRST + LAYERS["lstm"] + LAYERS["gru"]), device, tmp_path, 4)
    turns = [(2, {}), (2, {"engine": "reference"}), (2, {"precision": "fp16"}), (2, {}), (1, {}), (2, {}), (2, {})]
    for t, (batch, how) in enumerate(turns):
        x = network_input(reference, t, batch)
        (want,) = reference.predict(x, engine="reference")
        (got,) = host(device, net.predict(device.asarray(x), **how))
        assert distance([got], [want]) < 1e-2 if t in (2, 3) else 2e-5, t
    for each in (reference, net):
        for own in each.weights:
            own.pop("state", None)  # as the names of Darknet's module reset a network
    x = network_input(reference, 1, 2)
    (want,) = reference.predict(x, engine="reference")
    assert distance(host(device, net.predict(device.asarray(x))), [want]) < 2e-5


def test_two_layers_of_one_network_have_separate_states(device, tmp_path):
    reference, net = pair(cfg.parse(NET + LAYERS["crnn"] + LAYERS["crnn"] + LAYERS["conv_lstm"]), device, tmp_path, 4)
    for t in range(3):
        x = network_input(reference, t, 2)
        want = reference.predict(x, engine="reference")
        assert distance(host(device, net.predict(device.asarray(x))), want) < 2e-5
    states = [own["state"] for own in net.weights]
    for mine, own in zip(states, reference.weights, strict=True):
        for a, b in zip(mine, own["state"], strict=True):
            np.testing.assert_allclose(device.to_numpy(a), b, rtol=1e-4, atol=1e-5)
