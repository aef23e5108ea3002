// What the sixteen codes of bitsandbytes' 4-bit types stand for, before a block's scale. Kernel units include this.
#pragma once

namespace lowrank {

// Quantiles of the normal distribution, so that each code is as frequent as the others. Dettmers et al. 2023 (QLoRA),
// arXiv:2305.14314
alignas(64) constexpr float kNf4Codes[16] = {
    -1.0f,
    -0.6961928009986877f,
    -0.5250730514526367f,
    -0.39491748809814453f,
    -0.28444138169288635f,
    -0.18477343022823334f,
    -0.09105003625154495f,
    0.0f,
    0.07958029955625534f,
    0.16093020141124725f,
    0.24611230194568634f,
    0.33791524171829224f,
    0.44070982933044434f,
    0.5626170039176941f,
    0.7229568362236023f,
    1.0f,
};

// A sign, two bits of exponent and one of mantissa, divided by the largest, 12.
alignas(64) constexpr float kFp4Codes[16] = {
    0.0f, 0.0625f / 12, 8.0f / 12, 1.0f, 4.0f / 12, 6.0f / 12, 2.0f / 12, 3.0f / 12,
    0.0f, -0.0625f / 12, -8.0f / 12, -1.0f, -4.0f / 12, -6.0f / 12, -2.0f / 12, -3.0f / 12,
};

}  // namespace lowrank
