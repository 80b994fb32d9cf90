"""What people look at: the report page, TensorBoard, figures, numbers, printed tables.

Takes plain values, arrays and tensors; knows no stage and no script.  `__main__` alone is a script:
`python -m report RUN`.
"""
