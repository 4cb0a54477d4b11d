#include "attending.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <thread>
#include <vector>

#include "vectors.h"

namespace {

// rows: of the cache that the sequences have, out of `cache_rows`; empty: in order.
struct Shape {
    int64_t tokens, capacity, heads, kv_heads, size;
    std::vector<int32_t> last;
    std::vector<int64_t> rows = {};
    int64_t cache_rows = 0;

    int64_t all_rows() const { return rows.empty() ? int64_t(last.size()) : cache_rows; }
    int64_t row_of(int64_t b) const { return rows.empty() ? b : rows[size_t(b)]; }
};

const Shape kShapes[] = {
    {1, 70, 8, 2, 64, {66}},
    {1, 9, 2, 1, 8, {0, 8}},
    {17, 20, 6, 2, 80, {16, 3, 11}},
    {5, 130, 7, 1, 20, {129}},
    {37, 64, 3, 3, 72, {60}},
    {70, 75, 4, 2, 40, {74}},
    {3, 5, 40, 1, 1, {4}},
    {1, 1, 1, 1, 256, {0, 0, 0, 0}},
    {2, 300, 4, 4, 128, {299, 1}},
    {1, 40, 6, 2, 64, {33, 7, 8, 9, 39}, {4, 1, 1, 1, 0}, 5},  // three tokens of one sequence among others
    {4, 30, 4, 4, 16, {29, 11}, {2, 0}, 3},
};
constexpr float kScale = 0.17f;
// Tiles multiply halves of numbers, and leave out the products of low ones.
double tolerance_of(const char *set) { return strcmp(set, "amx") ? 2e-6 : 2e-5; }

// Attention over random numbers, each array in a block of its own.
struct Problem {
    Shape shape;
    Block query, key, value, past_key, past_value, last, output;

    explicit Problem(const Shape &s) : shape(s) {
        const auto batch = int64_t(s.last.size());
        query = floats(batch * s.tokens * s.heads * s.size);
        key = floats(batch * s.tokens * s.kv_heads * s.size);
        value = floats(batch * s.tokens * s.kv_heads * s.size);
        past_key = floats(s.all_rows() * s.kv_heads * s.capacity * s.size);
        past_value = floats(s.all_rows() * s.kv_heads * s.capacity * s.size);
        last = Block(s.last.data(), s.last.size() * sizeof(int32_t));
        output = floats(batch * s.tokens * s.heads * s.size);
    }

    slimdeploy_attention described() const {
        return {int64_t(shape.last.size()),
                shape.tokens,
                shape.all_rows(),
                shape.capacity,
                shape.heads,
                shape.kv_heads,
                shape.size,
                kScale,
                query.as<float>(),
                key.as<float>(),
                value.as<float>(),
                past_key.as<float>(),
                past_value.as<float>(),
                shape.rows.empty() ? nullptr : shape.rows.data(),
                last.as<int32_t>(),
                output.as<float>()};
    }

    // Of one query over the cache as it is afterwards. Adds to the squares of the difference and of the expectation.
    void compare(int64_t b, int64_t token, int64_t head, double &difference, double &norm) const {
        const Shape &s = shape;
        const int64_t length = s.last[size_t(b)] + 1, past = std::max<int64_t>(length - s.tokens, 0);
        const int64_t place = ((b * s.tokens + token) * s.heads + head) * s.size;
        const int64_t cache = (s.row_of(b) * s.kv_heads + head / (s.heads / s.kv_heads)) * s.capacity * s.size;
        const int64_t keys = past + token + 1;
        std::vector<double> expected(size_t(s.size), 0.0), weights;
        for (int64_t k = 0; k < keys && keys <= length; k++) {
            double score = 0;
            for (int64_t d = 0; d < s.size; d++) {
                score += double(query.as<float>()[place + d]) * past_key.as<float>()[cache + k * s.size + d];
            }
            weights.push_back(score * kScale);
        }
        const double most = weights.empty() ? 0 : *std::max_element(weights.begin(), weights.end());
        double total = 0;
        for (double &weight : weights) total += weight = std::exp(weight - most);
        for (size_t k = 0; k < weights.size(); k++) {
            for (int64_t d = 0; d < s.size; d++) {
                expected[size_t(d)] += weights[k] / total * past_value.as<float>()[cache + int64_t(k) * s.size + d];
            }
        }
        for (int64_t d = 0; d < s.size; d++) {
            const double found = output.as<float>()[place + d];
            difference += (found - expected[size_t(d)]) * (found - expected[size_t(d)]);
            norm += expected[size_t(d)] * expected[size_t(d)];
        }
    }

   private:
    static Block floats(int64_t count) {
        static std::mt19937 random(5);
        Block block(size_t(count) * sizeof(float));
        for (int64_t i = 0; i < count; i++) block.as<float>()[i] = std::normal_distribution<float>()(random);
        return block;
    }
};

// A pool with more threads than it is told of, as onnxruntime's may be.
void run_on_four_threads(void *, size_t tasks, void (*task)(void *, size_t), void *argument) {
    std::vector<std::thread> threads;
    for (size_t first = 0; first < 4; first++) {
        threads.emplace_back([=] {
            for (size_t i = first; i < tasks; i += 4) task(argument, i);
        });
    }
    for (std::thread &thread : threads) thread.join();
}

int check_shapes(const char *set) {
    int failures = 0;
    for (const Shape &shape : kShapes) {
        for (const int32_t threads : {1, 2, 3}) {
            const Problem problem(shape);
            const slimdeploy_attention attention = problem.described();
            char error[256] = "";
            if (slimdeploy_attend(&attention, set, threads, threads == 2 ? run_on_four_threads : nullptr, nullptr,
                                  error, sizeof error)) {
                printf("%s: refused: %s\n", set, error);
                failures++;
                continue;
            }
            double difference = 0, norm = 0;
            for (int64_t b = 0; b < attention.batch; b++) {
                for (int64_t t = 0; t < shape.tokens; t++) {
                    for (int64_t h = 0; h < shape.heads; h++) problem.compare(b, t, h, difference, norm);
                }
            }
            const double relative = std::sqrt(difference / norm);
            if (relative < tolerance_of(set)) continue;
            printf("%s: %d heads of %d, %d tokens: relative error %g\n", set, int(shape.heads), int(shape.size),
                   int(shape.tokens), relative);
            failures++;
        }
    }
    return failures;
}

int check_nonsense() {
    const Problem problem(kShapes[0]);
    const auto refused = [&](void (*spoil)(slimdeploy_attention &)) {
        slimdeploy_attention attention = problem.described();
        spoil(attention);
        char error[256] = "";
        return slimdeploy_attend(&attention, nullptr, 1, nullptr, nullptr, error, sizeof error) && error[0];
    };
    using Asked = slimdeploy_attention;
    void (*const spoilings[])(Asked &) = {
        [](Asked &a) { a.batch = 0; },
        [](Asked &a) { a.tokens = -1; },
        [](Asked &a) { a.capacity = 66; },
        [](Asked &a) { a.heads = int64_t(1) << 62; },
        [](Asked &a) { a.kv_heads = 0; },
        [](Asked &a) { a.kv_heads = 3; },
        [](Asked &a) { a.cache_rows = 0; },
        [](Asked &a) {
            static const int64_t rows[] = {1};
            a.rows = rows;
        },
        [](Asked &a) {
            static const int64_t rows[] = {-1};
            a.rows = rows;
        },
        [](Asked &a) { a.head_size = 0; },
        [](Asked &a) { a.query = nullptr; },
        [](Asked &a) { a.key = nullptr; },
        [](Asked &a) { a.past_value = nullptr; },
        [](Asked &a) { a.last = nullptr; },
        [](Asked &a) { a.output = nullptr; },
    };
    int failures = 0, number = 0;
    for (const auto spoil : spoilings) {
        if (!refused(spoil)) printf("spoilt attention %d is not refused\n", number), failures++;
        number++;
    }
    char error[256] = "";
    failures += !slimdeploy_attend(nullptr, nullptr, 1, nullptr, nullptr, error, sizeof error);
    return failures;
}

}  // namespace

int check_attention(const char *set) {
    int32_t supported = 0;
    int failures = check_nonsense(), sets = 0;
    for (int32_t index = 0; const char *name = slimdeploy_instruction_set(index, &supported); index++) {
        if (!supported || (set && strcmp(set, name))) continue;
        failures += check_shapes(name);
        sets++;
    }
    if (!sets) {
        printf("%s: not on this CPU\n", set);
        return 0;
    }
    printf("attention: %d failures\n", failures);
    return failures != 0;
}
