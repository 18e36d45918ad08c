#include <bits/stdc++.h>
using namespace std;
const int B=126;typedef bitset<B> Bits;
map<string,double> O;
double opt(const char*k,double d){auto it=O.find(k);return it==O.end()?d:it->second;}
struct Span{int a,b;int n()const{return b-a;}bool operator==(const Span&o)const{return a==o.a&&b==o.b;}};
struct Srv{int id;double P;int m;double dl;double stays;bool crash;
 Span goal{0,0};bool serving=false,joined=false,alive=true,known=true;
 bool plan=false;Span target{0,0};double ready=0;bool announced=false;double ann_at=0;
 Bits disk;double warm=0;bool ahead=false;double born=0;};
struct Ev{double t;long k;int type;int s;long x;};
struct Cmp{bool operator()(const Ev&a,const Ev&b)const{return a.t>b.t||(a.t==b.t&&a.k>b.k);}};
enum{ARRIVE,FETCHED,LOADED,LEAVE,KNOWN,PLAN,TRY,AHEAD,PERIODIC};
struct Item{int s;Span home,cur,alt;bool fixed,hasalt;double P;int m;double fs[B+1];double mc;};
struct Search{
 vector<Item>items;double st[B];int ct[B];double scale,lonely,lonely2,power,fc,maxf,floorr=opt("floor",0.15);int SQ;mt19937_64 rq{1};double now_score,costs;
 double before_s;
 double trust(int n){return n<=0?0:n==1?lonely:n==2?lonely2:1;}
 double pw(double x){x=1/x;for(int i=0;i<SQ;i++)x*=x;return x;}
 double score(double*s,int*c){double x=0;for(int b=0;b<B;b++)x+=pw(max(s[b]*trust(c[b])/scale,floorr));return log(x)/power;}
 void init(){SQ=opt("SQ",4);power=1<<SQ;lonely=opt("lonely",0.6);lonely2=opt("lonely2",1);fc=opt("fc",1e-4);maxf=opt("maxfetch",1e9);
  memset(st,0,sizeof st);memset(ct,0,sizeof ct);scale=0;costs=0;
  for(auto&it:items){put(st,ct,it.P,it.cur,1);}
  for(int b=0;b<B;b++)scale+=st[b]/B;for(auto&it:items)if(!it.fixed)costs+=cost(it,it.cur);now_score=score(st,ct);before_s=now_score;}
 void put(double*s,int*c,double P,Span t,int sg){for(int b=t.a;b<t.b;b++){s[b]+=sg*P/t.n();c[b]+=sg;if(!c[b])s[b]=0;}}
 double cost(const Item&it,Span t){if(t==it.home)return 0;double f=it.fs[t.b]-it.fs[t.a];double cs=fc*f;if(f>maxf)cs+=100;if(!(it.hasalt&&t==it.alt))cs+=it.mc;return cs;}
 void place(double*s,int*c,Item&it,Span&out,double&oc,double&osc){
  double be[B],tr[B];double tot=0;for(int b=0;b<B;b++){be[b]=pw(max(s[b]*trust(c[b])/scale,floorr));tot+=be[b];tr[b]=trust(c[b]+1)/scale;}
  double best=1e300;int M=min(it.m,B);
  for(int L=1;L<=M;L++){double x=it.P/L;double d[B],cu[B+1];
   for(int b=0;b<B;b++)d[b]=max((s[b]+x)*tr[b],floorr);
   for(int b=0;b<B;b++)d[b]=1/d[b];
   for(int i=0;i<SQ;i++)for(int b=0;b<B;b++)d[b]*=d[b];
   cu[0]=0;for(int b=0;b<B;b++)cu[b+1]=cu[b]+d[b]-be[b];
   for(int a=0;a+L<=B;a++){double sc=tot+cu[a+L]-cu[a];if(sc>=best)continue;Span t{a,a+L};double cs=cost(it,t);
    double v=cs>20?1e299:sc*exp(power*cs);if(v<best){best=v;out=t;oc=cs;osc=sc;}}}
 }
 void run(int trials,int maxmoves,double slack){
  vector<int>mv;for(int i=0;i<(int)items.size();i++)if(!items[i].fixed)mv.push_back(i);
  if(mv.empty())return;int moved=0;for(int i:mv)moved+=!(items[i].cur==items[i].home);
  double T=now_score+costs,best=T;vector<Span>bs;for(auto&it:items)bs.push_back(it.cur);
  for(int t=0;t<trials;t++){
   int k=min<int>(1+t%3,mv.size());int ch[4];
   for(int j=0;j<k;j++){bool ok;do{ok=true;ch[j]=mv[rq()%mv.size()];for(int i=0;i<j;i++)if(ch[i]==ch[j])ok=false;}while(!ok);}
   double s2[B];int c2[B];memcpy(s2,st,sizeof st);memcpy(c2,ct,sizeof ct);double c0=costs;int m2=moved;Span nw[4];double sc=0;
   for(int j=0;j<k;j++){Item&it=items[ch[j]];put(s2,c2,it.P,it.cur,-1);c0-=cost(it,it.cur);m2-=!(it.cur==it.home);}
   for(int j=0;j<k;j++){Item&it=items[ch[j]];double oc;place(s2,c2,it,nw[j],oc,sc);c0+=oc;m2+=!(nw[j]==it.home);put(s2,c2,it.P,nw[j],1);}
   double T2=log(sc)/power+c0;
   double sl=slack*(1-double(t)/trials)*-log(1-(rq()%1000000)/1000001.0);
   if(m2<=maxmoves&&T2<=T+sl){memcpy(st,s2,sizeof st);memcpy(ct,c2,sizeof ct);costs=c0;moved=m2;T=T2;for(int j=0;j<k;j++)items[ch[j]].cur=nw[j];
    if(T<best-1e-9){best=T;for(size_t i=0;i<items.size();i++)bs[i]=items[i].cur;}}}
  for(size_t i=0;i<items.size();i++)items[i].cur=bs[i];
 }
};
struct Sim{
 mt19937_64 rp,rq;double now=0;long kk=0;priority_queue<Ev,vector<Ev>,Cmp>q;vector<Srv>S;int N;
 double str[B]={0};int cnt[B]={0};double cov[B]={0};
 double Ss=0,Bs=0,Gs=0,Ks=0,Es=0,Ls=0,Hs=0,last=0,bound=0,cm=0,gm=0,km=0,em=0;long moves=0,live=0,plans=0,planned=0,fetched=0;bool planpend=false;double plantime=0;
 double U(){return uniform_real_distribution<double>(0,1)(rp);}
 void at(double d,int ty,int s,long x=0){q.push({now+d,kk++,ty,s,x});}
 double ln(double m,double s){return m*exp(s*normal_distribution<double>()(rp));}
 int newcomer(bool present){double sc=6*3600.0,T,age=0;
  if(present){double g=gamma_distribution<double>(3,1)(rp);double tot=sc*g*g,u=U();T=tot*u;age=tot-T;}else T=weibull_distribution<double>(0.5,sc)(rp);
  Srv s;s.id=S.size();s.P=ln(2000,0.6);s.m=lround(exp(log(4)+U()*log(5.0)));s.dl=ln(25e6,0.8);s.stays=T;s.crash=U()<0.5;s.warm=age;s.born=now;S.push_back(s);return s.id;}
 Span cmt(Srv&s){return s.plan?s.target:s.goal;}
 void mins(){double m=1e18;for(int b=0;b<B;b++)m=min(m,cnt[b]>0?str[b]:0.0);cm=max(m,0.0);
  double g[B]={0},k[B]={0},e[B]={0};for(auto&s:S)if(s.joined){Span t=cmt(s);double x=s.P/t.n();
   if(s.alive)for(int b=t.a;b<t.b;b++)g[b]+=x; if(s.known)for(int b=t.a;b<t.b;b++)k[b]+=x;
   if(s.alive){x=s.P/s.goal.n();for(int b=s.goal.a;b<s.goal.b;b++)e[b]+=x;}}
  gm=*min_element(g,g+B);km=*min_element(k,k+B);em=*min_element(e,e+B);}
 void adv(double t){double e=t-last;if(e<=0)return;Ss+=e*cm;Bs+=e*bound;Gs+=e*gm;Ks+=e*km;Es+=e*em;Ls+=e*live;for(int b=0;b<B;b++){if(cnt[b]>0)cov[b]+=e;Hs+=e*cnt[b]/B;}last=t;}
 void rebound(){double tot=0;vector<pair<double,double>>v;for(auto&s:S)if(s.joined&&s.alive){v.push_back({s.P,s.m});tot+=s.P;}
  double lo=0,hi=tot/B;for(int i=0;i<40;i++){double L=(lo+hi)/2,x=0;for(auto&p:v)x+=min(p.first,p.second*L);if(x>=B*L)lo=L;else hi=L;}bound=hi;}
 void sv(Srv&s,int sg){for(int b=s.goal.a;b<s.goal.b;b++){str[b]+=sg*s.P/s.goal.n();cnt[b]+=sg;if(!cnt[b])str[b]=0;}}
 double fetch(Srv&s,Span g){int n=0;for(int b=g.a;b<g.b;b++)n+=!s.disk[b];return n*1.6e9/s.dl;}
 double load(Span g){return 10+1.6*g.n();}
 void fill(Item&it,Srv&s){it.s=s.id;it.P=s.P;it.m=s.m;it.home=s.goal;it.cur=cmt(s);it.alt=it.cur;it.hasalt=s.plan;it.mc=opt("mc",0.004);
  it.fs[0]=0;for(int b=0;b<B;b++)it.fs[b+1]=it.fs[b]+(s.disk[b]?0:1.6e9/s.dl);}
 Span joinspan(Srv&s){Search se;for(auto&o:S)if(o.known&&o.id!=s.id&&(o.joined||opt("joinsee",1))){Item it;fill(it,o);it.fixed=true;se.items.push_back(it);}
  Item me;me.P=s.P;me.m=s.m;if(opt("joinshort",0)>0)me.m=max(1,(int)lround(s.m*opt("joinshort",0)));me.fixed=true;me.hasalt=false;me.home=Span{0,0};me.mc=0;for(int b=0;b<=B;b++)me.fs[b]=0;
  me.cur=Span{0,1};se.items.push_back(me);se.init();se.put(se.st,se.ct,me.P,me.cur,-1);Span o;double oc,sc;me.home=Span{-1,-1};double f=1.6e9/s.dl;for(int b=0;b<=B;b++)me.fs[b]=b*f*(now>0);se.fc=opt("joinfc",0);se.maxf=1e9;se.place(se.st,se.ct,me,o,oc,sc);return o;}
 void add(bool present){int i=newcomer(present);Srv&s=S[i];s.goal=joinspan(s);live++;at(s.stays,LEAVE,i);
  if(present){for(int b=s.goal.a;b<s.goal.b;b++)s.disk[b]=1;joined(s);}else at(fetch(s,s.goal),FETCHED,i);}
 void joined(Srv&s){s.serving=true;sv(s,1);for(int b=s.goal.a;b<s.goal.b;b++)s.disk[b]=1;
  bool first=!s.joined;s.joined=true;if(first){rebound();
   if(opt("all",0))s.disk.set();
   else if(opt("aheadn",0)>0){ if(opt("warm",0)&&s.warm>0){int n=min(1e6,s.warm*s.dl*opt("share",1)/1.6e9);while(n-->0&&aheadstep(s));}
     at(1.6e9/(s.dl*opt("share",1)),AHEAD,s.id);}
   }
  bool pend=false;for(auto&o:S)if(o.alive&&o.joined&&(!o.serving||o.plan))pend=true;if(first||!pend||!opt("rare",0))needplan(3);}
 int aheadnext(Srv&s){int lim=opt("aheadn",0);if((int)s.disk.count()>=lim)return -1;
  int c=(s.goal.a+s.goal.b)/2;
  for(int d=0;d<B;d++){int l=c-d,r=c+d;if(r<B&&!s.disk[r])return r;if(l>=0&&!s.disk[l])return l;}return -1;}
 bool aheadstep(Srv&s){int b=aheadnext(s);if(b<0)return false;s.disk[b]=1;fetched++;return true;}
 void needplan(double d){if(opt("noplan",0))return;if(!planpend){planpend=true;at(d,PLAN,-1);}}
 void plan(){planpend=false;Search se;se.rq.seed(plans+1);
  for(auto&s:S)if(s.known&&s.joined){Item it;fill(it,s);it.fixed=!s.serving||!s.alive;if(!s.serving){it.cur=s.goal;it.hasalt=false;}se.items.push_back(it);}
  auto t0=chrono::steady_clock::now();
  se.init();se.run(opt("trials",1000),opt("maxmoves",12),opt("slack",0));plantime+=chrono::duration<double>(chrono::steady_clock::now()-t0).count();plans++;
  for(auto&it:se.items)if(!it.fixed){Srv&s=S[it.s];
    if(it.cur==s.goal){s.plan=false;s.announced=false;}
    else if(!(s.plan&&s.target==it.cur)){planned++;s.plan=true;s.target=it.cur;s.announced=false;s.ready=now+fetch(s,it.cur);at(s.ready-now,TRY,s.id);}}}
 bool mayleave(Srv&s){ // announced by others count as gone
  double fl=opt("theta",0)*km;
  for(int b=s.goal.a;b<s.goal.b;b++){int c=0;double x=0;for(auto&o:S)if(o.alive&&o.serving&&o.id!=s.id&&!o.announced&&b>=o.goal.a&&b<o.goal.b){c++;x+=o.P/o.goal.n();}
   if(c==0||x<fl)return false;}return true;}
 void tryit(Srv&s){if(!s.plan||!s.serving||now<s.ready-1e-6)return;
  if(!s.announced){
   if(opt("fly",0)>0){int f=0;for(auto&o:S)if(o.alive&&o.joined&&(!o.serving||o.announced))f++;if(f>=opt("fly",0)){at(2,TRY,s.id);return;}}
   if(mayleave(s)){s.announced=true;s.ann_at=now;at(6,TRY,s.id);}else at(2,TRY,s.id);return;}
  if(now<s.ann_at+6-1e-6)return;
  for(int b=s.goal.a;b<s.goal.b;b++)if(cnt[b]<2){s.announced=false;at(2,TRY,s.id);return;}
  sv(s,-1);s.serving=false;s.goal=s.target;s.plan=false;s.announced=false;moves++;at(load(s.goal)*opt("loadx",1),LOADED,s.id);}
 unsigned prio(Srv&s){return s.id*2654435761u;}
 void leave(Srv&s){if(s.serving)sv(s,-1);s.serving=false;bool j=s.joined;s.alive=false;live--;if(j)rebound();
  bool lead=true;for(auto&o:S)if(o.alive&&o.joined&&prio(o)<prio(s))lead=false;
  at(s.crash?(opt("detect",0)>0?3+opt("detect",0)*(rq()%1000)/1e3+(lead?0:0):240+60*(rq()%1000)/1000.0):3,KNOWN,s.id);}
 void go(double hours,int seed){rp.seed(seed*7919+1);rq.seed(seed);double scen=3*126/(16/log(5.0)*0.8);N=lround(opt("N",scen));
  for(int i=0;i<N;i++)add(true);
  mins();double gap=12*3600.0/N;auto ex=[&](){return -log(1-U())*gap;};at(ex(),ARRIVE,-1);needplan(3);if(opt("period",0))at(opt("period",0),PERIODIC,-1);
  double end=hours*3600;while(!q.empty()&&q.top().t<end){Ev e=q.top();q.pop();adv(e.t);now=e.t;
   switch(e.type){case ARRIVE:add(false);at(ex(),ARRIVE,-1);break;
    case FETCHED:if(S[e.s].alive)at(load(S[e.s].goal),LOADED,e.s);break;
    case LOADED:if(S[e.s].alive)joined(S[e.s]);break;
    case LEAVE:leave(S[e.s]);break;
    case KNOWN:S[e.s].known=false;needplan(0.5);break;
    case PLAN:plan();break;
    case TRY:if(S[e.s].alive)tryit(S[e.s]);break;
    case PERIODIC:needplan(0);at(opt("period",0),PERIODIC,-1);break;
    case AHEAD:{Srv&s=S[e.s];if(s.alive){if(!(s.plan&&now<s.ready))aheadstep(s);if((int)s.disk.count()<opt("aheadn",0))at(1.6e9/(s.dl*opt("share",1)),AHEAD,e.s);}}break;}
   mins();}
  adv(end);double wc=1,mc=0;for(int b=0;b<B;b++){wc=min(wc,cov[b]/end);mc+=cov[b]/end/B;}
  printf("%d servers %.1f red %.2f cov %.3f mean %.4f share %.3f goal %.3f known %.3f exec %.3f moves %.2f planned %.2f plans %ld %.1fms\n",seed,Ls/end,Hs/end,wc*100,mc*100,Ss/Bs,Gs/Bs,Ks/Bs,Es/Bs,moves/(Ls/3600),planned/(Ls/3600),plans,plantime/plans*1e3);
  R[0].push_back(wc*100);R[1].push_back(Ss/Bs);R[2].push_back(moves/(Ls/3600));R[3].push_back(Gs/Bs);R[4].push_back(Es/Bs);R[5].push_back(Hs/end);}
 static vector<double>R[6];
};
vector<double> Sim::R[6];
int main(int c,char**v){for(int i=1;i<c;i++){string s=v[i];auto p=s.find('=');O[s.substr(0,p)]=stod(s.substr(p+1));}
 for(int s=opt("s0",0);s<=opt("s1",2);s++){Sim*x=new Sim;x->go(opt("hours",24),s);delete x;fflush(stdout);}
 printf("MEAN");const char*nm[]={"cov","share","moves","goal","exec","red"};for(int i=0;i<6;i++){double m=0,ss=0;int n=Sim::R[i].size();for(double x:Sim::R[i])m+=x/n;for(double x:Sim::R[i])ss+=(x-m)*(x-m);printf(" %s %.3f(%.3f)",nm[i],m,n>1?sqrt(ss/(n-1)/n):0);}puts("");}
