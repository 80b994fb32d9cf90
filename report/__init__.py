"""What people look at: TensorBoard, figures, numbers about a selection, printed tables.

Takes plain values, arrays and tensors; knows no stage and no script.
"""
