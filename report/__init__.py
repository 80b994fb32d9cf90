"""What people look at: the report page, TensorBoard, figures, numbers, printed tables.

Takes plain values, arrays and tensors; knows no stage and no script.

diagnostics  what a selection's labels and a network's answers say: counts and rates
mcnemar      two networks on the same test images
figures      pictures for the board and the page
board        TensorBoard
page/        the report page
tables       what the steps print
predictions  what predict.py prints
model_card   what export.py writes beside the weights
__main__     python -m report RUN
"""
