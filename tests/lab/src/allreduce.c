/*
 * The lab's job: an all-reduce of float sums in a loop, as the gradient step of data-parallel training.
 *
 *   allreduce BYTES ITERATIONS SECONDS COMPUTE_MS      (0 iterations or seconds: no such limit)
 *
 * Rank 0 prints a JSON line after each iteration. When it decides to end it says so inside the data
 * (element 0), so that the job consists of MPI_Allreduce calls and nothing else. SIGTERM ends it the same way.
 */
#include <mpi.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static volatile sig_atomic_t ending;

static void end(int signal)
{
    (void)signal;
    ending = 1;
}

static double epoch_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
    int rank;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc != 5) {
        fprintf(stderr, "usage: %s BYTES ITERATIONS SECONDS COMPUTE_MS\n", argv[0]);
        MPI_Abort(MPI_COMM_WORLD, 64);
    }
    int count = (int)(strtol(argv[1], NULL, 10) / (long)sizeof(float));
    long iterations = strtol(argv[2], NULL, 10);
    double seconds = strtod(argv[3], NULL);
    long compute_ms = strtol(argv[4], NULL, 10);
    struct timespec compute = {compute_ms / 1000, compute_ms % 1000 * 1000000L};
    float *gradient = calloc((size_t)count, sizeof(float));
    float *sum = calloc((size_t)count, sizeof(float));
    if (count < 1 || gradient == NULL || sum == NULL)
        MPI_Abort(MPI_COMM_WORLD, 71);
    for (int i = 1; i < count; i++)
        gradient[i] = (float)(i % 7);

    signal(SIGTERM, end);
    double start = epoch_s();
    for (long i = 0;; i++) {
        nanosleep(&compute, NULL);
        double before = MPI_Wtime();
        int last = ending || (rank == 0 && ((iterations > 0 && i + 1 >= iterations)
                                            || (seconds > 0 && epoch_s() - start >= seconds)));
        gradient[0] = last ? 1.0f : 0.0f;
        MPI_Allreduce(gradient, sum, count, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
        if (rank == 0) {
            printf("{\"i\":%ld,\"t\":%.6f,\"s\":%.6f}\n", i, epoch_s(), MPI_Wtime() - before);
            fflush(stdout);
        }
        if (sum[0] > 0.5f)
            break;
    }
    MPI_Finalize();
    return 0;
}
