// Products with packed matrices (docs/concepts/packed-form.md): codes of 2 to 8 bits in groups, each with its scale and
// maybe an offset for every output. Included once per instruction set.
#pragma once

namespace shoal::SHOAL_ISA {

// Codes of a step, 32 stored inputs of a panel, in planes of 1, 2, 4 and 8 bits. A quad is four neighbouring inputs, whose
// codes are the bytes of a word. In a plane of P bits quad q has its own from bit P · (q mod 8/P) of each byte of word
// q div 8/P, so that a shift and a mask take a quad out.
template <int P, int Q, int AT>
inline I shifted(const uint32_t* plane) {  // the quad's bits begin at bit AT of each byte; the others are anything
    constexpr int kEach = 8 / P, kShift = AT - P * (Q % kEach);
    const I word = words(plane + Q / kEach * kPanel);
    if constexpr (kShift > 0) return left<kShift>(word);
    if constexpr (kShift < 0) return right<-kShift>(word);
    return word;
}
template <int P, int AT>
inline I mask() {
    return all_words(static_cast<int32_t>(((1u << P) - 1) * 0x01010101u << AT));
}

template <int BITS>
struct Quads {
    static constexpr int kLow = BITS == 8 ? 8 : BITS >= 4 ? 4 : 2;  // bits of the first plane, and of the second:
    static constexpr int kHigh = BITS - kLow;
    template <int Q>
    static I get(const uint32_t* step) {
        if constexpr (BITS == 8) return words(step + Q * kPanel);
        const I low = both(shifted<kLow, Q, 0>(step), mask<kLow, 0>());
        if constexpr (kHigh == 0) return low;
        else return or_masked(low, shifted<kHigh, Q, kLow>(step + kLow * kPanel), mask<kHigh, kLow>());
    }
};

// The numbers that codes stand for before they are scaled: less `zero`, or those of a table.
struct Numbers {
    explicit Numbers(const ShoalSection& section) : zero(all_words(section.zero)), look_up(section.table) {
        if (section.table) return;
        float each[16];
        for (int code = 0; code < 16; ++code)
            each[code] = static_cast<float>((code & ((1 << section.bits) - 1)) - section.zero);
        look_up = LookUp(each);
    }
    I zero;
    LookUp look_up;  // of 16: it sees the low four bits of a word
};

// Input J of a quad as floats, for the panel's outputs from `step` on.
template <int BITS, bool TABLE, int Q, int J>
inline F number(const uint32_t* step, I quad, const Numbers& numbers) {
    if constexpr (TABLE || (kLooksUp && BITS <= 4)) {
        if constexpr (BITS == 2 || BITS == 4) {  // straight out of the plane: what is above does not matter
            constexpr int kEach = 8 / BITS, kShift = 8 * J + BITS * (Q % kEach);
            return numbers.look_up(right<kShift>(words(step + Q / kEach * kPanel)));
        } else {
            return numbers.look_up(right<8 * J>(quad));
        }
    } else {
        return to_float(minus(byte_of<J>(quad), numbers.zero));
    }
}

template <int BITS, bool TABLE, int R, int N, int Q, int J>
[[gnu::always_inline]] inline void add_input(const float* const (&x)[R], const uint32_t* step, const I (&quad)[N],
                                             const Numbers& numbers, Sums<R, N>& sums) {
    F b[N];
    for (int v = 0; v < N; ++v) b[v] = number<BITS, TABLE, Q, J>(step + v * W, quad[v], numbers);
    for (int r = 0; r < R; ++r) {
        const F a = all(x[r][4 * Q + J]);
        for (int v = 0; v < N; ++v) sums.at[r][v] = fma(a, b[v], sums.at[r][v]);
    }
}

template <int BITS, bool TABLE, int R, int N, int Q>
[[gnu::always_inline]] inline void add_quad(const float* const (&x)[R], const uint32_t* step, const Numbers& numbers,
                                            Sums<R, N>& sums) {
    I quad[N];
    for (int v = 0; v < N; ++v) quad[v] = Quads<BITS>::template get<Q>(step + v * W);
    [&]<int... J>(std::integer_sequence<int, J...>) SHOAL_INLINE {
        (add_input<BITS, TABLE, R, N, Q, J>(x, step, quad, numbers, sums), ...);
    }(std::make_integer_sequence<int, 4>{});
}

// Asks for what a step of some columns has further on in the stream.
template <int BITS, int R>
[[gnu::always_inline]] inline void read_ahead(const uint32_t* step, int columns) {
    for (int word = 0; word < BITS; ++word)
        for (int line = 0; line < columns; line += 16)
            _mm_prefetch(reinterpret_cast<const char*>(step + word * kPanel + line) + kAhead, hint_of<R>());
}

// How much of a step a group has: all of it, or half.
template <int FROM, int COUNT>
struct Part {
    template <class Body>
    [[gnu::always_inline]] static void each(Body body) {
        [&]<int... Q>(std::integer_sequence<int, Q...>) SHOAL_INLINE {
            (body.template operator()<FROM + Q>(), ...);
        }(std::make_integer_sequence<int, COUNT>{});
    }
};
using WholeStep = Part<0, 8>;

// What a group has for every output of a panel: weight = scale · number − offset.
struct GroupLevels {
    float scale[kPanel], offset[kPanel];
};

// A section of a panel: what the levels of its groups need, one after the other, and then its codes.
class Stream {
public:
    Stream(const ShoalSection& section, const uint8_t* at)
        : section_(section), at_(at), codes_(at + section.level_bytes()) {}

    // Reads the levels of the next group. The numbers have `zero` taken off already, but not what an output has of its own.
    void levels(GroupLevels& to) {
        const bool minima = section_.minima;
        if (!section_.units && group_ % section_.unit_groups == 0) {
            units(unit_);
            if (minima) units(least_);
        }
        if (section_.units)
            for (int v = 0; v < NV; ++v) store(unit_ + v * W, all(section_.units[group_ / section_.unit_groups]));
        scaled(unit_, to.scale, section_.squared);
        if (minima) scaled(least_, to.offset, false);
        if (section_.zero_kind) {
            float zero[kPanel];
            whole(section_.zero_kind, zero);
            for (int i = 0; i < kPanel; i += W) {
                const F offset = mul(load(to.scale + i), load(zero + i));
                store(to.offset + i, minima ? add(offset, load(to.offset + i)) : offset);
            }
        }
        ++group_;
    }
    const uint32_t* codes(int steps) {
        const uint8_t* here = codes_;
        codes_ += static_cast<size_t>(steps) * section_.bits * kPanel * 4;
        return reinterpret_cast<const uint32_t*>(here);
    }
    bool offsets() const { return section_.minima || section_.zero_kind; }

private:
    void units(float* to) {
        for (int i = 0; i < kPanel; i += W) {
            const uint16_t* half = reinterpret_cast<const uint16_t*>(at_) + i;
            store(to + i, section_.unit_kind == kUnitF16    ? half_to_float(half)
                          : section_.unit_kind == kUnitBf16 ? bf16_to_float(half)
                                                            : load(reinterpret_cast<const float*>(at_) + i));
        }
        at_ += section_.unit_kind == kUnitF32 ? 4 * kPanel : 2 * kPanel;
    }
    void scaled(const float* unit, float* to, bool squared) {
        if (!section_.step_kind) {
            std::memcpy(to, unit, kPanel * sizeof(float));
            return;
        }
        whole(section_.step_kind, to);
        for (int i = 0; i < kPanel; i += W) {
            F step = load(to + i);
            if (squared) step = mul(add(step, all(1.0f)), add(step, all(1.0f)));
            const F level = mul(load(unit + i), step);
            store(to + i, squared ? rounded_to_half(level) : level);
        }
    }
    void whole(int32_t kind, float* to) {
        if (kind == kNibbles) {
            for (int i = 0; i < kPanel / 2; i += W) nibbles_to_float(at_ + i, to + i, to + i + kPanel / 2);
            at_ += kPanel / 2;
        } else {
            for (int i = 0; i < kPanel; i += W)
                store(to + i, kind == kSigned ? int8_to_float(reinterpret_cast<const int8_t*>(at_ + i))
                                              : uint8_to_float(at_ + i));
            at_ += kPanel;
        }
    }

    const ShoalSection& section_;
    const uint8_t *at_, *codes_;
    int group_ = 0;
    float unit_[kPanel], least_[kPanel];
};

// Sums of a tile's rows into out [R][64]: + scale · sum − offset · total, where `totals` [R] are the rows' own.
template <int R, int N>
[[gnu::always_inline]] inline void add_levels(const Sums<R, N>& sums, const GroupLevels& levels, const float* totals, size_t ldt, bool first,
                       float* out, int at) {
#pragma GCC unroll 8
    for (int v = 0; v < N; ++v) {
        const F scale = load(levels.scale + at + v * W);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            float* here = out + static_cast<size_t>(r) * kPanel + at + v * W;
            F sum = fma(scale, sums.at[r][v], first ? zero() : load(here));
            if (totals) sum = fma(sub(zero(), load(levels.offset + at + v * W)), all(totals[r * ldt]), sum);
            store(here, sum);
        }
    }
}

template <int BITS, bool TABLE, class P>
inline void float_group(const Numbers& numbers, const GroupLevels& levels, const float* x, size_t ldx,
                        const float* totals, size_t ldt, int m, const uint32_t* codes, int steps, bool first, float* out) {
    row_tiles<6>(m, [&]<int R>(int r) {
        constexpr int N = W == 16 ? 4 : R == 1 ? 4 : 2;
        for (int v = 0; v < NV; v += N) {
            Sums<R, N> sums;
            sums.clear();
            const float* from[R];  // a pointer for each row: what is added to it is known to the compiler
            for (int i = 0; i < R; ++i) from[i] = x + (r + i) * ldx;
            const uint32_t* step = codes + v * W;
            for (int s = 0; s < steps; ++s, step += BITS * kPanel) {
                P::each([&]<int Q>() SHOAL_INLINE { add_quad<BITS, TABLE, R, N, Q>(from, step, numbers, sums); });
                read_ahead<BITS, R>(step, N * W);
                for (int i = 0; i < R; ++i) from[i] += 32;
            }
            add_levels(sums, levels, totals ? totals + r * ldt : nullptr, ldt, first,
                       out + static_cast<size_t>(r) * kPanel, v * W);
        }
    });
}

// Integer products with rows rounded to 8 bits. `kWide`: codes of 8 bits, whose products do not fit 16 on every processor.
template <int BITS, bool TABLE>
constexpr bool kWide = BITS == 8 || TABLE;

template <int BITS, bool TABLE, int R, int N, int Q>
[[gnu::always_inline]] inline void add_codes(const int8_t* const (&x)[R], const uint32_t* step, const Bytes& table,
                                             I (&sums)[R][N]) {
    for (int v = 0; v < N; ++v) {
        I quad = Quads<BITS>::template get<Q>(step + v * W);
        if constexpr (TABLE) quad = table(quad);
        for (int r = 0; r < R; ++r) {
            int32_t four;
            std::memcpy(&four, x[r] + 4 * Q, sizeof(four));
            sums[r][v] = kWide<BITS, TABLE> ? add_wide_products(sums[r][v], quad, all_words(four))
                                            : add_products(sums[r][v], quad, all_words(four));
        }
    }
}

// One block of rows' codes, which share a scale: out += scale · (row scale · Σ code · number) − offset · row scale · Σ code
template <int BITS, bool TABLE, class P>
inline void integer_group(const ShoalSection& section, const Bytes& table, const GroupLevels& levels, bool offsets,
                          const int8_t* x, size_t ldx, const float* row_scales, size_t lds, const int32_t* totals,
                          size_t ldt, int m, const uint32_t* codes, int steps, bool first, float* out) {
    const int32_t zero_code = (TABLE ? kTableZero : section.zero) - (kWide<BITS, TABLE> ? kWideZero : 0);
    row_tiles<4>(m, [&]<int R>(int r) {
        constexpr int N = W == 16 ? 4 : R <= 2 ? 4 : 2;
        for (int v = 0; v < NV; v += N) {
            I sums[R][N];
            for (int i = 0; i < R; ++i)
                for (int n = 0; n < N; ++n) sums[i][n] = no_sum();
            const int8_t* from[R];
            for (int i = 0; i < R; ++i) from[i] = x + (r + i) * ldx;
            const uint32_t* step = codes + v * W;
            for (int s = 0; s < steps; ++s, step += BITS * kPanel) {
                P::each([&]<int Q>() SHOAL_INLINE { add_codes<BITS, TABLE, R, N, Q>(from, step, table, sums); });
                read_ahead<BITS, R>(step, N * W);
                for (int i = 0; i < R; ++i) from[i] += 32;
            }
            Sums<R, N> floats;
            float whole[R];
            for (int i = 0; i < R; ++i) {
                const int32_t total = totals[(r + i) * ldt];
                const float row_scale = row_scales[(r + i) * lds];
                whole[i] = row_scale * static_cast<float>(total);
                for (int n = 0; n < N; ++n)
                    floats.at[i][n] = mul(all(row_scale), minus_to_float(sums[i][n], zero_code * total));
            }
            add_levels(floats, levels, offsets ? whole : nullptr, 1, first, out + static_cast<size_t>(r) * kPanel, v * W);
        }
    });
}

// Where a section's next chunk lies in the rows.
struct Cursor {
    int input = 0, chunk = 0, block = 0;
};

// Calls body.template operator()<Part>(levels, codes, steps) for each chunk of a section: what is summed at once. That is a
// group; with integers no more than a block, whose codes share a scale; and half a step where a group is no more.
template <class Body>
inline void each_chunk(const ShoalSection& section, Stream& stream, bool integers, Cursor& at, Body body) {
    const bool halves = section.group < 32;
    const int of_group = halves ? 1 : section.group / 32, of_block = integers ? block_of(section) / 32 : of_group;
    GroupLevels levels, second;
    for (int step = 0; step < section.steps;) {
        const int end = std::min(step + of_group, section.steps);
        stream.levels(levels);
        if (halves) stream.levels(second);
        for (; step < end; ++at.block, ++at.chunk) {
            const int steps = std::min(of_block, end - step);
            const uint32_t* codes = stream.codes(steps);
            if (halves) {
                body.template operator()<Part<0, 4>>(levels, codes, 1);
                ++at.chunk;
                body.template operator()<Part<4, 4>>(second, codes, 1);
            } else {
                body.template operator()<WholeStep>(levels, codes, steps);
            }
            step += steps;
            at.input += 32 * steps;
        }
    }
}

template <int BITS, bool TABLE>
inline void packed_section(const ShoalSection& section, Stream& stream, const PreparedRows& rows, Cursor& at, int m,
                           float* out) {
    const bool offsets = stream.offsets();
    if (rows.codes) {
        const Bytes table(section.table);
        each_chunk(section, stream, true, at, [&]<class P>(const GroupLevels& levels, const uint32_t* codes, int steps) {
            integer_group<BITS, TABLE, P>(section, table, levels, offsets, rows.codes + at.input, rows.ldc,
                                          rows.scales + at.block, rows.blocks, rows.totals + at.chunk, rows.chunks, m,
                                          codes, steps, at.chunk == 0, out);
        });
    } else {
        const Numbers numbers(section);
        each_chunk(section, stream, false, at, [&]<class P>(const GroupLevels& levels, const uint32_t* codes, int steps) {
            float_group<BITS, TABLE, P>(numbers, levels, rows.x + at.input, rows.ldx,
                                        offsets ? rows.sums + at.chunk : nullptr, rows.chunks, m, codes, steps,
                                        at.chunk == 0, out);
        });
    }
}

// out [m][64] = rows · the panel
inline void packed_panel(const ShoalMatrix& matrix, int panel, const PreparedRows& rows, int m, float* out) {
    const uint8_t* at = static_cast<const uint8_t*>(matrix.data) + static_cast<size_t>(panel) * matrix.panel_bytes;
    if (panel + kSoon < matrix.panels())
        for (int byte = 0; byte < kAhead; byte += 64)
            _mm_prefetch(reinterpret_cast<const char*>(at) + kSoon * matrix.panel_bytes + byte, _MM_HINT_T1);
    Cursor cursor;
    for (int s = 0; s < matrix.num_sections; ++s) {
        const ShoalSection& section = matrix.sections[s];
        Stream stream(section, at);
        const auto go = [&]<int BITS, bool TABLE>() {
            packed_section<BITS, TABLE>(section, stream, rows, cursor, m, out);
        };
        switch (section.bits) {
            case 2: go.template operator()<2, false>(); break;
            case 3: go.template operator()<3, false>(); break;
            case 4: section.table ? go.template operator()<4, true>() : go.template operator()<4, false>(); break;
            case 5: go.template operator()<5, false>(); break;
            case 6: go.template operator()<6, false>(); break;
            default: go.template operator()<8, false>();
        }
        at += section.bytes();
    }
}

}  // namespace shoal::SHOAL_ISA
