/* Looks names up as libc does: `stub TIMES NAME ...` prints a line for each lookup. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void look_up(const char *name) {
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    int error = getaddrinfo(name, NULL, &hints, &found);
    if (error != 0) {
        printf(error == EAI_NONAME ? "missing\n" : "failed: %s\n", gai_strerror(error));
        return;
    }
    for (struct addrinfo *next = found; next != NULL; next = next->ai_next) {
        char text[INET6_ADDRSTRLEN] = "?";
        if (next->ai_family == AF_INET)
            inet_ntop(AF_INET, &((struct sockaddr_in *)next->ai_addr)->sin_addr, text, sizeof text);
        printf("%s ", text);
    }
    printf("\n");
    freeaddrinfo(found);
}

int main(int count, char **arguments) {
    for (int i = 1; i + 1 < count; i += 2)
        for (int times = atoi(arguments[i]); times > 0; times--) look_up(arguments[i + 1]);
    return 0;
}
