"""Accuracy, of any model on any images."""

import torch


@torch.inference_mode()
def outputs(model, batches):
    """(logits float32 [N, K], labels int64 [N]) of the model in eval mode over all batches, on the CPU."""
    training = model.training
    model.eval()
    logits, labels = zip(*((model(images), labels) for images, labels in batches), strict=True)
    model.train(training)
    return torch.cat(logits).float().cpu(), torch.cat(labels).cpu()


def share(right):
    return right.double().mean().item()


def accuracy(logits, labels):
    """The share of images [N] whose largest logit [N, K] is their label's [N]."""
    return share(logits.argmax(1) == labels)


def source_accuracy(logits, labels, problem, source_classes):
    """(accuracy, accuracy restricted to the target's classes) of the source model on a target problem.

    logits: [N, len(source_classes)], the source model's own; labels: [N], the problem's.
    Binary: the arg-max is read as "is it the target class", and there is nothing to restrict.
    Multi-class: the arg-max over all the source's classes, which flatters a re-engineered model, and
    over the target's classes only, the fair comparison.
    """
    members = torch.tensor([source_classes.index(name) for name in problem.members])
    prediction = logits.argmax(1)
    if problem.kind == "binary":
        value = share((prediction == members[0]) == (labels == 0))
        return value, value
    return share(prediction == members[labels]), share(logits[:, members].argmax(1) == labels)
