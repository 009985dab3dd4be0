"""Begin from weights that keep the signal's size."""

from lightning_weightwatch.advice._base import Remedy

REMEDY = Remedy(
    topic="initialisation",
    treats={
        "vanishing_gradients": (
            "Initialise for the activation that follows: nn.init.kaiming_normal_(weight, nonlinearity='relu') before "
            "ReLU, nn.init.xavier_normal_(weight, gain=5/3) before tanh; PyTorch's default loses signal in deep plain "
            "networks."
        ),
        "exploding_gradients": (
            "If they were large from the first step, lower the gain of the initial weights and normalise inputs and "
            "targets."
        ),
        "constant_weights": (
            "Draw weight matrices at random: units that begin equal stay equal, as all receive the same gradient."
        ),
        "non_finite_weights": "Load or draw the weights again and check them with audit_init(model) before training.",
        "symmetric_units": (
            "Draw the weights of every layer at random (reset_parameters()), as copies never part by training."
        ),
        "zero_blocked_signal": (
            "Begin at most one matrix of a chain at zero, and one of LoRA's two; draw the others at random, and see "
            "that an optimizer holds the one that is zero."
        ),
        "dead_units": (
            "If they were dead from the first step, use nn.init.kaiming_normal_(weight, nonlinearity='relu') with "
            "biases at 0."
        ),
        "saturated_units": (
            "Draw weights with a smaller gain (nn.init.xavier_normal_(weight, gain=5/3) before tanh, gain=1 before "
            "sigmoid)."
        ),
        "init_too_small": (
            "Draw weights for the activation that follows: nn.init.kaiming_normal_(weight, nonlinearity='relu') before "
            "ReLU, nn.init.xavier_normal_(weight, gain=5/3) before tanh."
        ),
        "init_too_large": (
            "Draw weights with a spread of one over the root of their inputs, times the gain of the activation that "
            "follows, and begin the last layer of each skipped branch at zero."
        ),
        "dead_at_init": (
            "Begin biases before ReLU at zero, and draw the weights with mean zero by "
            "nn.init.kaiming_normal_(weight, nonlinearity='relu')."
        ),
        "saturated_at_init": (
            "Draw weights with a smaller gain (nn.init.xavier_normal_(weight, gain=5/3) before tanh, gain=4 before "
            "sigmoid), their biases at zero."
        ),
        "bad_initial_loss": (
            "Begin the last layer near zero, and its bias at the mean of the targets or at the logarithm of the "
            "frequencies of the classes."
        ),
        "identical_layers": (
            "Draw copied layers anew once the model is built, as PyTorch's own Transformer does: "
            "for p in model.parameters(): if p.dim() > 1: nn.init.xavier_uniform_(p)."
        ),
        "never_initialised": (
            "Call reset_parameters() of every module after to_empty(), and initialise what torch.empty() made."
        ),
        "tied_mismatch": (
            "Tie shared weights again once the model is where it will be trained, and draw a shared embedding with a "
            "standard deviation of one over the root of its width."
        ),
        "layer_scale_outlier": "Initialise the layer as its peers are, and check it with audit_init(model).",
    },
)
