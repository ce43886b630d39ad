"""Stage 4: task vectors. Model soups, arXiv:2203.05482 · task arithmetic, arXiv:2212.04089

    tau_t = theta_t - theta_0                               theta_0 pretrained, theta_t fine-tuned
    average           theta = theta_0 + (1/T) sum_t tau_t    which is the mean of the T models
    task arithmetic   theta = theta_0 + lam sum_t tau_t
    forgetting        theta = theta_0 - lam tau
    cosine            <a, b> / (||a|| ||b||), where a dict counts as one long vector

Shapes   models and task vectors are dicts name -> tensor with the same keys and shapes;
         base is theta_0, taus a list of T task vectors
Rule     modify no argument in place: another merge starts from the same dicts
"""


def task_vector(base, finetuned):
    """tau, a dict, of the two models theta_0 and theta_t."""
    raise NotImplementedError("task_vector: blank")


def average(base, taus):
    """theta, a dict."""
    raise NotImplementedError("average: blank")


def task_arithmetic(base, taus, *, lam=0.3):
    """theta, a dict."""
    raise NotImplementedError("task_arithmetic: blank")


def forget(base, tau, *, lam=1.0):
    """theta, a dict, after forgetting what the one task vector tau had learned."""
    raise NotImplementedError("forget: blank")


def cosine(a, b):
    """The cosine of two task vectors over all tensors together: a tensor of shape ()."""
    raise NotImplementedError("cosine: blank")
