"""Audit a sick and a healthy network without a Trainer, cell by cell.

Run it with ``python examples/audit_a_network.py``, or cell by cell in an editor that knows ``# %%``. It needs the
package and scikit-learn, takes seconds on one CPU core and downloads nothing.
"""

# %% Real data: 1,797 handwritten digits of 8 x 8 dots
from __future__ import annotations

import math

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lightning_weightwatch import InitReport, audit_init, seed

pictures, labels = load_digits(return_X_y=True)
x = torch.tensor((pictures - pictures.mean()) / pictures.std(), dtype=torch.float32)
y = torch.tensor(labels)


# %% A deep network, and two ways to draw its weights
def network(depth: int = 16, width: int = 64) -> nn.Sequential:
    """Return ``depth`` layers with a ReLU after each, and a classifier."""
    hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, 10))


def draw(net: nn.Sequential, std: float) -> nn.Sequential:
    """Draw every weight from a normal distribution; biases begin at zero."""
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=std)
            nn.init.zeros_(layer.bias)
    return net


seed(0)
sick = draw(network(), std=0.05)  # "small numbers are safe"
healthy = draw(network(), std=math.sqrt(2 / 64))  # He et al.: sqrt(2 / fan_in) before a ReLU


# %% The audit: one batch, forwards and backwards, on copies; the network is left as it was
def audit(title: str, net: nn.Sequential) -> InitReport:
    """Print what an audit of ``net`` says."""
    report = audit_init(net, (x[:256], y[:256]), nn.functional.cross_entropy)
    signal = report.signal
    print(f"\n=== {title}: {report.headline}")
    if signal is not None:
        first, last = signal.layers[0], signal.layers[-1]
        print(f"spread of the activations    {first.spread:.3g} in the first layer, {last.spread:.3g} in the last")
        print(f"gradient of a layer's output {first.gradient:.3g} in the first layer, {last.gradient:.3g} in the last")
        print(f"first loss                   {signal.loss:.4f}, expected {signal.expected_loss:.4f}")
    for finding in report.findings:
        print(finding)
    return report


audit("Sick, drawn with std 0.05", sick)
audit("Healthy, drawn with std sqrt(2 / 64)", healthy)


# %% The same seen by training: plain SGD, a hundred steps
def train(net: nn.Sequential, steps: int = 100) -> float:
    """Train on random batches and return the mean of the last ten losses."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    order = torch.Generator().manual_seed(0)
    losses: list[Tensor] = []
    for _ in range(steps):
        batch = torch.randint(len(x), (64,), generator=order)
        loss = nn.functional.cross_entropy(net(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return float(torch.stack(losses[-10:]).mean())


print("\nloss after 100 steps of SGD")
print(f"  sick    {train(sick):.3f}")
print(f"  healthy {train(healthy):.3f}")
