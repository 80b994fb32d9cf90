"""Small residual networks for 32 x 32 images, after He et al. 2015 (arXiv 1512.03385, section 4.2).

Depth 6n+2: a 3x3 stem, three groups of n two-layer blocks at 32, 16 and 8 pixels with w, 2w and
4w channels, global average pooling, one linear layer.  He's own networks have w = 16; twice the
width costs about four times the arithmetic.
"""

import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut; `stride` 2 halves the image.

    x (B,channels_in,H,W) -> (B,channels,H/stride,W/stride).  Where the shape changes, the shortcut
    is a 1x1 convolution (He's option B, as in torchvision).
    """

    def __init__(self, channels_in, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = nn.Identity()
        if stride != 1 or channels_in != channels:
            conv = nn.Conv2d(channels_in, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels))

    def forward(self, x):
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(x), inplace=True)


class SmallResNet(nn.Module):
    """images (B,3,H,W), normalised float -> logits (B,num_classes).

    depth: layers, 6n+2 (8, 14, 20, 32, ...), else ValueError;  width: channels of the first group
    """

    def __init__(self, depth, width, num_classes):
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if remainder or blocks < 1:
            raise ValueError(f"depth {depth} is not 6n+2; such as 8, 14, 20, 32, 44, 56 or 110")
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        groups, channels_in = [], width
        for channels, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for index in range(blocks):
                groups.append(Block(channels_in, channels, stride if index == 0 else 1))
                channels_in = channels
        self.blocks = nn.Sequential(*groups)
        self.fc = nn.Linear(channels_in, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)  # (B, w, H, W)
        x = self.blocks(x)  # (B, 4w, H/4, W/4)
        return self.fc(x.mean((2, 3)))  # (B, num_classes)
