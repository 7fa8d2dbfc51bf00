/* Records a training run of the Darknet: original CFG WEIGHTS DATA OUT STEPS SEEN TRUTHS

   Build AlexeyAB/darknet without GPU, OpenCV, AVX and OpenMP (-O2 -ffp-contract=off), and link this with all of its object
   files but darknet.o. DATA holds, for each mini-batch, the images and then TRUTHS numbers for each image, as float32.
   OUT.costs gets the cost of each step, OUT.0, OUT.1, ... the weights after it. */
#include "darknet.h"
#include "network.h"
#include "parser.h"
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
    gpu_index = -1;
    network net = parse_network_cfg(argv[1]);
    load_weights(&net, argv[2]);
    int steps = atoi(argv[5]);
    *net.seen = atol(argv[6]);
    *net.cur_iteration = *net.seen / (net.batch * net.subdivisions);
#ifdef PATCHED /* see PATCHES in darknet_recordings.py; the other corrections are edits of the program */
    for (int i = 0; i < net.n; ++i) net.layers[i].train = 1;
#endif
    size_t xs = (size_t)net.batch * net.inputs, ys = (size_t)net.batch * atoi(argv[7]);
    float *x = malloc(xs * sizeof(float)), *y = malloc(ys * sizeof(float));
    char name[4096];
    snprintf(name, sizeof name, "%s.costs", argv[4]);
    FILE *data = fopen(argv[3], "rb"), *costs = fopen(name, "w");
    for (int step = 0; step < steps; ++step) {
        float cost = 0;
        for (int part = 0; part < net.subdivisions; ++part) {
            if (fread(x, sizeof(float), xs, data) != xs || fread(y, sizeof(float), ys, data) != ys) return 1;
            net.current_subdivision = part;
            cost += train_network_datum(net, x, y);
        }
        *net.cur_iteration += 1;
        update_network(net);
        fprintf(costs, "%.9g\n", cost);
        snprintf(name, sizeof name, "%s.%d", argv[4], step);
        save_weights(net, name);
    }
    fclose(costs);
    return 0;
}
