"""The other side of the benchmark: the same net by backpropagation, as well as PyTorch's own libraries do it.

Every run trains from the initial weights that ``--baseline bp`` starts from, with the same batches, augmentation,
precision, threads per device, fused AdamW and allocator settings as the run that it is compared with. On GPUs they
may use kernels that are not deterministic, which the run's own layers may not. ``--compile on`` compiles each layer,
with the compiler's CUDA graphs where the run's own steps are graphs;
``--transfer-dtype bf16`` halves what crosses a pipeline's cuts. ``runner.backprop_runners`` makes the rows.
"""
