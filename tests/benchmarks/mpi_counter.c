/* Counts what a program sends over MPI, for LD_PRELOAD: mpicc -shared -fPIC -O2 mpi_counter.c -o mpi_counter.so
 * At the end every rank prints a line: MPI-COUNT messages bytes collectives. */
#include <mpi.h>
#include <stdio.h>

static long long messages, bytes, collectives;

static void sent(int count, MPI_Datatype type) {
  int size = 0;
  PMPI_Type_size(type, &size);
  ++messages, bytes += (long long)count * size;
}

int MPI_Send(const void *buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm) {
  sent(count, type);
  return PMPI_Send(buffer, count, type, to, tag, comm);
}

int MPI_Rsend(const void *buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm) {
  sent(count, type);
  return PMPI_Rsend(buffer, count, type, to, tag, comm);
}

int MPI_Isend(const void *buffer, int count, MPI_Datatype type, int to, int tag, MPI_Comm comm, MPI_Request *request) {
  sent(count, type);
  return PMPI_Isend(buffer, count, type, to, tag, comm, request);
}

int MPI_Sendrecv(const void *buffer, int count, MPI_Datatype type, int to, int tag, void *other, int other_count,
                 MPI_Datatype other_type, int from, int other_tag, MPI_Comm comm, MPI_Status *status) {
  sent(count, type);
  return PMPI_Sendrecv(buffer, count, type, to, tag, other, other_count, other_type, from, other_tag, comm, status);
}

int MPI_Allreduce(const void *buffer, void *found, int count, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  ++collectives;
  return PMPI_Allreduce(buffer, found, count, type, op, comm);
}

int MPI_Finalize(void) {
  int rank = 0;
  PMPI_Comm_rank(MPI_COMM_WORLD, &rank);
  fprintf(stderr, "MPI-COUNT %lld %lld %lld\n", messages, bytes, collectives);
  return PMPI_Finalize();
}
