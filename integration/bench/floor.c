/* The kernel's own price of a pod: only the system calls, nothing around them.
 *
 *   gcc -O2 -Wall -o floor floor.c && ./floor [-n runs] [-v2] [-nonet] [-noveth] [-nopid]
 *
 * One run: make control groups (every v1 hierarchy that is mounted, or with -v2
 * only the unified one), make overlay directories, clone into new namespaces, attach,
 * mount an overlay, mount proc, pivot, name the host, bring lo up, make a veth pair
 * with one end on a bridge of ours, give the other an address and a default route,
 * execute a static /bin/true, wait, take everything down.  Medians in microseconds.
 * Run it as root; it uses /tmp/pod-floor, control groups "pod-floor" and bridge podfl0.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define BASE "/tmp/pod-floor"
#define BRIDGE "podfl0"
#define MAXRUN 5000

static double now_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1e6 + t.tv_nsec / 1e3;
}

static void die(const char *what) { fprintf(stderr, "%s: %s\n", what, strerror(errno)); exit(1); }

/* ---- steps and their samples ------------------------------------------------ */

enum { S_CGMK, S_DIRS, S_CLONE, S_ATTACH, S_PRIV, S_OVL, S_PROC, S_PIVOT, S_UTS, S_LO, S_VETH, S_ADDR,
       S_EXEC, S_VETHDEL, S_CGRM, S_RMDIRS, S_TOTAL_UP, S_TOTAL, S_N };
static const char *step_name[S_N] = {
    "cgroup mkdir (all hierarchies)", "overlay dirs mkdir", "clone into new namespaces", "cgroup attach",
    "make mounts private", "mount overlay", "mount proc", "pivot_root + umount old", "sethostname",
    "lo up", "veth pair + bridge port + up", "address + up + default route (in pod)",
    "exec static true + exit + wait", "veth delete", "cgroup rmdir", "overlay dirs rmdir",
    "TOTAL up to exec done", "TOTAL with teardown" };
static double sample[S_N][MAXRUN];

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static void print_row(const char *name, double *v, int n)
{
    qsort(v, n, sizeof *v, by_value);
    printf("| %-42s | %9.1f | %9.1f | %9.1f |\n", name, v[n / 2], v[0], v[n - 1]);
}

/* ---- control groups ------------------------------------------------------------ */

static const char *v1_all[] = { "cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids", "systemd", NULL };
static const char *hier[16];
static int nhier;

static void put(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, text, strlen(text)) < 0)
        die(path);
    close(fd);
}

static void take(const char *path, char *buf, size_t len)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, buf, len - 1);
    if (n < 0)
        die(path);
    buf[n] = 0;
    close(fd);
}

static void cg_make(const char *h, int child)
{
    char p[256], v[256];
    snprintf(p, sizeof p, "/sys/fs/cgroup/%s/pod-floor%s", h, child ? "/pod" : "");
    if (mkdir(p, 0755) && errno != EEXIST)
        die(p);
    if (!strcmp(h, "cpuset"))           /* a cpuset is unusable until it has both */
        for (int i = 0; i < 2; i++) {
            const char *k = i ? "cpuset.mems" : "cpuset.cpus";
            char up[300], at[300];
            snprintf(up, sizeof up, "/sys/fs/cgroup/%s%s/%s", h, child ? "/pod-floor" : "", k);
            snprintf(at, sizeof at, "%s/%s", p, k);
            take(up, v, sizeof v);
            put(at, v);
        }
}

static void cg_remove(const char *h, int child)
{
    char p[256];
    snprintf(p, sizeof p, "/sys/fs/cgroup/%s/pod-floor%s", h, child ? "/pod" : "");
    for (int i = 0; rmdir(p) && i < 1000; i++) {
        if (errno != EBUSY)
            die(p);
        usleep(50);
    }
}

/* ---- netlink, just enough ------------------------------------------------------- */

struct msg { struct nlmsghdr h; char body[1000]; };

static void m_start(struct msg *m, int type, int flags, const void *fixed, int len)
{
    memset(m, 0, sizeof *m);
    m->h.nlmsg_type = type;
    m->h.nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    m->h.nlmsg_len = NLMSG_LENGTH(len);
    memcpy(NLMSG_DATA(&m->h), fixed, len);
}

static struct rtattr *m_attr(struct msg *m, int type, const void *data, int len)
{
    struct rtattr *a = (void *)((char *)m + NLMSG_ALIGN(m->h.nlmsg_len));
    a->rta_type = type;
    a->rta_len = RTA_LENGTH(len);
    if (len)
        memcpy(RTA_DATA(a), data, len);
    m->h.nlmsg_len = NLMSG_ALIGN(m->h.nlmsg_len) + RTA_ALIGN(a->rta_len);
    return a;
}

static void m_end(struct msg *m, struct rtattr *a) { a->rta_len = (char *)m + m->h.nlmsg_len - (char *)a; }

static void m_grow(struct msg *m, const void *data, int len)
{
    memcpy((char *)m + m->h.nlmsg_len, data, len);
    m->h.nlmsg_len += NLMSG_ALIGN(len);
}

static int m_send(int fd, struct msg *m)
{
    char buf[4096];
    if (send(fd, m, m->h.nlmsg_len, 0) < 0)
        die("netlink send");
    if (recv(fd, buf, sizeof buf, 0) < (int)NLMSG_LENGTH(sizeof(struct nlmsgerr)))
        die("netlink answer");
    return -((struct nlmsgerr *)NLMSG_DATA((struct nlmsghdr *)buf))->error;
}

static int nl_open(void) { return socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE); }

static void link_up(int fd, int index, const char *what)
{
    struct ifinfomsg i = { .ifi_index = index, .ifi_flags = IFF_UP, .ifi_change = IFF_UP };
    struct msg m;
    m_start(&m, RTM_NEWLINK, 0, &i, sizeof i);
    if ((errno = m_send(fd, &m)))
        die(what);
}

static int add_bridge(int fd)
{
    struct ifinfomsg i = { 0 };
    struct msg m;
    m_start(&m, RTM_NEWLINK, NLM_F_CREATE, &i, sizeof i);
    m_attr(&m, IFLA_IFNAME, BRIDGE, sizeof BRIDGE);
    struct rtattr *info = m_attr(&m, IFLA_LINKINFO, NULL, 0);
    m_attr(&m, IFLA_INFO_KIND, "bridge", 6);
    m_end(&m, info);
    errno = m_send(fd, &m);
    if (errno && errno != EEXIST)
        die("bridge");
    int index = if_nametoindex(BRIDGE);
    link_up(fd, index, "bridge up");
    return index;
}

static void add_veth(int fd, int bridge, pid_t pod)
{
    struct ifinfomsg i = { .ifi_flags = IFF_UP, .ifi_change = IFF_UP }, peer = { 0 };
    struct msg m;
    m_start(&m, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, &i, sizeof i);
    m_attr(&m, IFLA_IFNAME, "podfl1", 7);
    m_attr(&m, IFLA_MASTER, &bridge, 4);
    struct rtattr *info = m_attr(&m, IFLA_LINKINFO, NULL, 0);
    m_attr(&m, IFLA_INFO_KIND, "veth", 4);
    struct rtattr *data = m_attr(&m, IFLA_INFO_DATA, NULL, 0);
    struct rtattr *p = m_attr(&m, VETH_INFO_PEER, NULL, 0);
    m_grow(&m, &peer, sizeof peer);
    m_attr(&m, IFLA_IFNAME, "eth0", 5);
    m_attr(&m, IFLA_NET_NS_PID, &pod, 4);
    m_end(&m, p);
    m_end(&m, data);
    m_end(&m, info);
    if ((errno = m_send(fd, &m)))
        die("veth");
}

static void del_link(int fd, const char *name)
{
    struct ifinfomsg i = { .ifi_index = if_nametoindex(name) };
    struct msg m;
    if (!i.ifi_index)
        return;
    m_start(&m, RTM_DELLINK, 0, &i, sizeof i);
    m_send(fd, &m);
}

static void pod_address(int fd)
{
    int index = if_nametoindex("eth0");
    struct ifaddrmsg a = { .ifa_family = AF_INET, .ifa_prefixlen = 24, .ifa_index = index };
    struct rtmsg r = { .rtm_family = AF_INET, .rtm_table = RT_TABLE_MAIN, .rtm_protocol = RTPROT_BOOT,
                       .rtm_scope = RT_SCOPE_UNIVERSE, .rtm_type = RTN_UNICAST };
    in_addr_t ip = inet_addr("10.89.77.2"), gw = inet_addr("10.89.77.1");
    struct msg m;
    m_start(&m, RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, &a, sizeof a);
    m_attr(&m, IFA_LOCAL, &ip, 4);
    m_attr(&m, IFA_ADDRESS, &ip, 4);
    if ((errno = m_send(fd, &m)))
        die("address");
    link_up(fd, index, "eth0 up");
    m_start(&m, RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, &r, sizeof r);
    m_attr(&m, RTA_GATEWAY, &gw, 4);
    m_attr(&m, RTA_OIF, &index, 4);
    if ((errno = m_send(fd, &m)))
        die("route");
}

/* ---- one pod ---------------------------------------------------------------------- */

static double *stamp;          /* shared with the child: one slot per step */
static int go_pipe[2], net = 1, veth = 1, pidns = 1;

static int wait_byte(int fd) { char c; return read(fd, &c, 1) == 1 ? 0 : -1; }

static void child(void)
{
    char opt[512];
    double t;
#define STEP(s, ...) do { t = now_us(); __VA_ARGS__; stamp[s] = now_us() - t; } while (0)
    if (wait_byte(go_pipe[0]))
        _exit(9);
    STEP(S_PRIV, if (mount("", "/", NULL, MS_REC | MS_PRIVATE, NULL)) die("private"));
    snprintf(opt, sizeof opt, "lowerdir=%s/lower,upperdir=%s/up,workdir=%s/work", BASE, BASE, BASE);
    STEP(S_OVL, if (mount("overlay", BASE "/root", "overlay", 0, opt)) die("overlay"));
    STEP(S_PROC, if (mount("proc", BASE "/root/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL)) die("proc"));
    STEP(S_PIVOT, if (chdir(BASE "/root") || syscall(SYS_pivot_root, ".", ".") ||
                      umount2(".", MNT_DETACH) || chdir("/")) die("pivot"));
    STEP(S_UTS, if (sethostname("pod", 3)) die("hostname"));
    if (net) {
        int fd = nl_open();
        STEP(S_LO, link_up(fd, 1, "lo up"));
        if (veth)
            STEP(S_ADDR, pod_address(fd));
        close(fd);
    }
    stamp[S_EXEC] = now_us();
    execl("/bin/true", "true", (char *)NULL);
    die("exec");
}

static void one(int run, int nl, int bridge)
{
    double t0 = now_us(), t, up;
    char num[32];
    int status, flags = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWUTS;
    if (net) flags |= CLONE_NEWNET;
    if (pidns) flags |= CLONE_NEWPID;
    memset(stamp, 0, sizeof(double) * S_N);
#define TOOK(s) (sample[s][run] = now_us() - t)
    t = t0;
    for (int i = 0; i < nhier; i++)
        cg_make(hier[i], 1);
    TOOK(S_CGMK);
    t = now_us();
    mkdir(BASE "/up", 0755); mkdir(BASE "/work", 0755); mkdir(BASE "/root", 0755);
    TOOK(S_DIRS);
    t = now_us();
    pid_t pid = syscall(SYS_clone, flags | SIGCHLD, 0, 0, 0, 0);
    if (pid < 0)
        die("clone");
    if (!pid) {
        child();
        _exit(1);
    }
    TOOK(S_CLONE);
    t = now_us();
    snprintf(num, sizeof num, "%d", pid);
    for (int i = 0; i < nhier; i++) {
        char p[256];
        snprintf(p, sizeof p, "/sys/fs/cgroup/%s/pod-floor/pod/cgroup.procs", hier[i]);
        put(p, num);
    }
    TOOK(S_ATTACH);
    if (net && veth) {
        t = now_us();
        add_veth(nl, bridge, pid);
        TOOK(S_VETH);
    }
    if (write(go_pipe[1], "x", 1) != 1)
        die("go");
    if (waitpid(pid, &status, 0) != pid || status)
        die("child failed");
    up = now_us();
    for (int s = S_PRIV; s <= S_ADDR; s++)
        if (s != S_VETH)
            sample[s][run] = stamp[s];
    sample[S_EXEC][run] = up - stamp[S_EXEC];
    sample[S_TOTAL_UP][run] = up - t0;
    if (net && veth) {
        t = now_us();
        del_link(nl, "podfl1");
        TOOK(S_VETHDEL);
    }
    t = now_us();
    for (int i = 0; i < nhier; i++)
        cg_remove(hier[i], 1);
    TOOK(S_CGRM);
    t = now_us();
    rmdir(BASE "/work/work"); rmdir(BASE "/work"); rmdir(BASE "/up"); rmdir(BASE "/root");
    TOOK(S_RMDIRS);
    sample[S_TOTAL][run] = now_us() - t0;
}

int main(int argc, char **argv)
{
    int runs = 200, v2 = 0, warm = 20;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-n") && i + 1 < argc) runs = atoi(argv[++i]);
        else if (!strcmp(argv[i], "-v2")) v2 = 1;
        else if (!strcmp(argv[i], "-nonet")) net = 0;
        else if (!strcmp(argv[i], "-noveth")) veth = 0;
        else if (!strcmp(argv[i], "-nopid")) pidns = 0;
    }
    if (runs < 1 || runs > MAXRUN - warm)
        runs = 200;
    if (v2)
        hier[nhier++] = "unified";
    else
        for (int i = 0; v1_all[i]; i++) {
            char p[128];
            snprintf(p, sizeof p, "/sys/fs/cgroup/%s/cgroup.procs", v1_all[i]);
            if (!access(p, F_OK))
                hier[nhier++] = v1_all[i];
        }
    stamp = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (pipe2(go_pipe, O_CLOEXEC))
        die("pipe");
    mkdir(BASE, 0755);
    mkdir(BASE "/lower", 0755);
    mkdir(BASE "/lower/proc", 0755);
    mkdir(BASE "/lower/bin", 0755);
    if (system("cd " BASE " && printf 'void _start(void){__asm__(\"mov $60,%%eax;xor %%edi,%%edi;syscall\");}' > t.c"
               " && gcc -Os -static -nostdlib -o lower/bin/true t.c"))
        die("gcc");
    for (int i = 0; i < nhier; i++)
        cg_make(hier[i], 0);
    int nl = nl_open(), bridge = net && veth ? add_bridge(nl) : 0;
    for (int i = 0; i < warm; i++)
        one(0, nl, bridge);
    for (int i = 0; i < runs; i++)
        one(i, nl, bridge);
    printf("%d runs, %d cgroup hierarchies%s%s%s\n", runs, nhier, v2 ? " (v2)" : " (v1)",
           net ? veth ? ", veth" : ", no veth" : ", no network namespace", pidns ? "" : ", no pid namespace");
    printf("| %-42s |    median |       min |       max |  (microseconds)\n", "step");
    for (int s = 0; s < S_N; s++) {
        if ((!net && (s == S_LO || s == S_VETH || s == S_ADDR || s == S_VETHDEL)) ||
            (!veth && (s == S_VETH || s == S_ADDR || s == S_VETHDEL)))
            continue;
        print_row(step_name[s], sample[s], runs);
    }
    if (bridge)
        del_link(nl, BRIDGE);
    for (int i = 0; i < nhier; i++)
        cg_remove(hier[i], 0);
    return 0;
}
