"""DOVER, video quality in two scores: technical (VQA-t: noise, blur, artefacts) and aesthetic (VQA-a: composition).

Wu et al., ICCV 2023, arXiv 2211.04894. Written from a description of the published program and its numbers; no line of
that program is here, since its licence forbids it. `metric` is the entrance, `published` finds the weights, `views`
makes the networks' inputs from a video, `swin` and `convnext` are the networks, `model` puts them together and `scores`
turns their output into percentages.
"""
